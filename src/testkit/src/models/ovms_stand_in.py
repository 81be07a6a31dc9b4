"""Stands in for OpenVINO Model Server, which cannot be had here: as its adapter's contract describes it, with ONNX Runtime.

It reads a configuration file at start and when told to over REST, keeps a state for each model, and answers the Open Inference
Protocol over gRPC. A file of switches, read again at each reload, makes it misbehave:
{"slow": {NAME: SECONDS}, "lose_answers": true}, where NAME is part of a model's name.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import onnxruntime as ort
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
TYPES = {"tensor(string)": "BYTES", "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(bool)": "BOOL"}


class Model:
    """One version of a model."""

    def __init__(self, version):
        self.version, self.session = version, None
        self.says("START", "OK", "OK")

    def says(self, state, code, message):
        self.state, self.status = state, {"error_code": code, "error_message": message}

    def load(self, folder):
        self.says("LOADING", "OK", "OK")
        try:
            files = [file for file in os.listdir(folder) if file.endswith(".onnx")]
            if not files:
                raise ValueError("no network in " + folder)
            path = os.path.join(folder, files[0])
            if os.path.isdir(path):
                path = os.path.join(path, "model.onnx")
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self.says("AVAILABLE", "OK", "OK")
        except Exception as fault:
            print("cannot load", folder, fault, flush=True)
            self.says("LOADING", "UNKNOWN", "Cannot compile model into target device")

    def retire(self):
        self.says("UNLOADING", "OK", "OK")
        self.session = None
        self.says("END", "OK", "OK")


class Server:
    def __init__(self, config, switches):
        self.config, self.switches_file = config, switches
        self.models, self.digest, self.last_good = {}, None, True
        self.reloading = threading.Lock()

    def switches(self):
        try:
            with open(self.switches_file) as file:
                return json.load(file)
        except (OSError, TypeError, ValueError):
            return {}

    def reload(self):
        """Reads the configuration. The HTTP status, and the body of the answer."""
        with self.reloading:
            try:
                with open(self.config, "rb") as file:
                    text = file.read()
                wanted = {item["config"]["name"]: item["config"]["base_path"] for item in json.loads(text)["model_config_list"]}
            except (OSError, KeyError, ValueError) as fault:
                return 500, {"error": "Config file not found or cannot open. %s" % fault}
            digest = hashlib.md5(text).hexdigest()
            if digest == self.digest and self.last_good:
                return 200, self.states()
            self.digest, self.last_good = digest, True
            for name, model in self.models.items():
                if name not in wanted and model.state != "END":
                    model.retire()
            slow = self.switches().get("slow", {})
            for name, path in wanted.items():
                if name in self.models and self.models[name].state == "AVAILABLE":
                    continue
                versions = [entry for entry in os.listdir(path) if entry.isdigit()] if os.path.isdir(path) else []
                version = max(versions, key=int, default="1")
                model = self.models[name] = Model(version)
                for part, seconds in slow.items():
                    if part in name:
                        time.sleep(seconds)
                model.load(os.path.join(path, version))
                self.last_good &= model.state == "AVAILABLE"
            print("reloaded", len(wanted), flush=True)
            if not self.last_good:
                return 400, {"error": "Reloading config file failed. Check server logs for more info."}
            return 201, self.states()

    def states(self):
        described = lambda model: {"model_version_status": [{"version": model.version, "state": model.state, "status": model.status}]}
        return {name: described(model) for name, model in sorted(self.models.items())}


def rest(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status, body):
            body = json.dumps(body, indent=4).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            known = self.path == "/v1/config"
            self.answer(200 if known else 404, server.states() if known else {"error": "Invalid request URL"})

        def do_POST(self):
            if self.path != "/v1/config/reload":
                return self.answer(404, {"error": "Invalid request URL"})
            answer = server.reload()
            if server.switches().get("lose_answers"):
                self.close_connection = True
                return self.connection.close()
            self.answer(*answer)

        def log_message(self, *_):
            pass

    return Handler


def datatype(tensor):
    return TYPES.get(tensor.type) or tensor.type[len("tensor(") : -1].upper()


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, server):
        self.server = server

    def session(self, name, context):
        model = self.server.models.get(name)
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "Model with requested name is not found")
        session = model.session
        if session is None:
            word = "loaded yet" if model.state in ("START", "LOADING") else "retired"
            context.abort(grpc.StatusCode.NOT_FOUND, "Model with requested version is " + ("not " + word if word == "loaded yet" else word))
        return session

    def ServerLive(self, request, context):
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):
        return pb.ServerReadyResponse(ready=True)

    def ServerMetadata(self, request, context):
        return pb.ServerMetadataResponse(name="OpenVINO Model Server", version="stand-in")

    def ModelReady(self, request, context):
        self.session(request.name, context)
        return pb.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request, context):
        session = self.session(request.name, context)
        shape = lambda tensor: [size if isinstance(size, int) else -1 for size in tensor.shape]
        tensors = lambda of: [pb.ModelMetadataResponse.TensorMetadata(name=t.name, datatype=datatype(t), shape=shape(t)) for t in of]
        return pb.ModelMetadataResponse(
            name=request.name, versions=["1"], platform="OpenVINO", inputs=tensors(session.get_inputs()), outputs=tensors(session.get_outputs())
        )

    def ModelInfer(self, request, context):
        session = self.session(request.model_name, context)
        try:
            inputs = {}
            for index, tensor in enumerate(request.inputs):
                if request.raw_input_contents:
                    raw = request.raw_input_contents[index]
                    values = deserialize_bytes_tensor(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, triton_to_np_dtype(tensor.datatype))
                else:
                    values = np.array(list(getattr(tensor.contents, CONTENTS[tensor.datatype])), triton_to_np_dtype(tensor.datatype))
                inputs[tensor.name] = values.reshape(tuple(tensor.shape))
            names = [output.name for output in request.outputs] or [output.name for output in session.get_outputs()]
            answer = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
            for name, values in zip(names, session.run(names, inputs)):
                of_text = values.dtype == np.object_ or values.dtype.kind in "US"
                kind = "BYTES" if of_text else np_to_triton_dtype(values.dtype)
                answer.outputs.add(name=name, datatype=kind, shape=list(values.shape))
                raw = serialize_byte_tensor(np.array([str(v).encode() for v in values.ravel()], np.object_)).item() if of_text else values.tobytes()
                answer.raw_output_contents.append(raw)
            return answer
        except Exception as fault:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(fault))


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--rest_port", type=int, required=True)
    flags.add_argument("--config_path", required=True)
    flags.add_argument("--switches")
    flags = flags.parse_args()
    server = Server(flags.config_path, flags.switches)
    server.reload()
    port = grpc.server(concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(server), port)
    if not port.add_insecure_port("127.0.0.1:%d" % flags.port):
        raise SystemExit("the port is taken")
    port.start()
    http = ThreadingHTTPServer(("127.0.0.1", flags.rest_port), rest(server))
    http.daemon_threads = True
    print("serving", flush=True)
    http.serve_forever()


main()

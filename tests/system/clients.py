"""Sends the recorded requests through tritonclient and compares the answers with the recorded ones.

    clients.py --grpc ADDR --http ADDR --folder examples/quickstart [--more] MODEL...

Three ways each: gRPC, HTTP with JSON tensors, HTTP with binary tensors; with --more also compressed, over a stream of gRPC and
asynchronously. Prints one line for each right answer; the first wrong one
ends it with its difference.
"""

import argparse
import json
import queue
from pathlib import Path

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import triton_to_np_dtype


def array(tensor):
    """The recorded tensor as the client library wants it; texts as bytes."""
    data = [text.encode() for text in tensor["data"]] if tensor["datatype"] == "BYTES" else tensor["data"]
    return np.array(data, dtype=triton_to_np_dtype(tensor["datatype"])).reshape(tensor["shape"])


def texts(values):
    """BYTES come back as bytes from binary contents and as text from JSON."""
    return [value.decode() if isinstance(value, bytes) else value for value in values.ravel().tolist()]


def compare(where, expected, answer):
    names = {output["name"] for output in expected["outputs"]}
    given = answer.get_response()
    given = given["outputs"] if isinstance(given, dict) else given.outputs
    given = {output["name"] if isinstance(output, dict) else output.name for output in given}
    assert given == names, f"{where}: outputs {sorted(given)} instead of {sorted(names)}"
    for output in expected["outputs"]:
        got, want = answer.as_numpy(output["name"]), array(output)
        assert got is not None, f"{where}: output {output['name']} has no data"
        assert list(got.shape) == output["shape"], f"{where}: {output['name']} has shape {got.shape} instead of {output['shape']}"
        if output["datatype"] == "BYTES":
            assert texts(got) == texts(want), f"{where}: {output['name']} is {texts(got)} instead of {texts(want)}"
            continue
        assert got.dtype == want.dtype, f"{where}: {output['name']} has type {got.dtype} instead of {want.dtype}"
        within = output["tolerance"] or {"absolute": 0, "relative": 0}
        same = np.allclose(got, want, rtol=within["relative"], atol=within["absolute"])
        assert same, f"{where}: {output['name']} is {got.tolist()} instead of {want.tolist()}"


def given(library, request, **binary):
    inputs = []
    for tensor in request["inputs"]:
        value = library.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        value.set_data_from_numpy(array(tensor), **binary)
        inputs.append(value)
    return inputs


def ask(library, client, model, request, binary):
    inputs = given(library, request, **({} if binary is None else {"binary_data": binary}))
    if binary is None:
        return client.infer(model, inputs)
    expected = request["expected"]["outputs"]
    return client.infer(model, inputs, outputs=[library.InferRequestedOutput(output["name"], binary_data=binary) for output in expected])


def more_ways(grpc, http, model, request):
    """Further ways to ask, each with its name."""
    for algorithm in ["gzip", "deflate"]:
        yield f"gRPC, {algorithm}", grpc.infer(model, given(over_grpc, request), compression_algorithm=algorithm)
        both = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        yield f"HTTP, {algorithm}", http.infer(model, given(over_http, request), **both)
    answers = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put(error or result))
    for _ in range(3):
        grpc.async_stream_infer(model, given(over_grpc, request))
    for at in range(3):
        answer = answers.get(timeout=60)
        if isinstance(answer, Exception):
            raise answer
        yield f"a stream, answer {at}", answer
    grpc.stop_stream()
    yield "HTTP, asynchronous", http.async_infer(model, given(over_http, request)).get_result(timeout=60)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--grpc", required=True)
    arguments.add_argument("--http", required=True)
    arguments.add_argument("--folder", required=True, type=Path)
    arguments.add_argument("--more", action="store_true")
    arguments.add_argument("models", nargs="+")
    asked = arguments.parse_args()

    grpc, http = over_grpc.InferenceServerClient(asked.grpc), over_http.InferenceServerClient(asked.http, network_timeout=60)
    for client in [grpc, http]:
        assert client.is_server_live() and client.is_server_ready()
    ways = [("gRPC", over_grpc, grpc, None), ("HTTP, JSON", over_http, http, False), ("HTTP, binary", over_http, http, True)]
    for model in asked.models:
        request = json.loads((asked.folder / "requests" / f"{model}.json").read_text())
        request["expected"] = json.loads((asked.folder / "expected" / f"{model}.json").read_text())
        for way, library, client, binary in ways:
            compare(f"{model} over {way}", request["expected"], ask(library, client, model, request, binary))
            print(f"right: {model} over {way}")
        # The default of the HTTP client: whatever the server offers.
        compare(f"{model} over HTTP", request["expected"], http.infer(model, given(over_http, request)))
        print(f"right: {model} over HTTP")
        for way, answer in more_ways(grpc, http, model, request) if asked.more else ():
            compare(f"{model} over {way}", request["expected"], answer)
            print(f"right: {model} over {way}")
        for client in [grpc, http]:
            assert client.is_model_ready(model), f"{model} is not ready"
        described = grpc.get_model_metadata(model)
        assert {one.name for one in described.inputs} == {one["name"] for one in request["inputs"]}, f"{model}: inputs of the metadata"
        described = http.get_model_metadata(model)
        assert {one["name"] for one in described["outputs"]} == {one["name"] for one in request["expected"]["outputs"]}, f"{model}: outputs of the metadata"


if __name__ == "__main__":
    main()

"""Sends the recorded requests through tritonclient and compares the answers with the recorded ones.

    clients.py --grpc ADDR --http ADDR --folder examples/quickstart MODEL...

Three ways each: gRPC, HTTP with JSON tensors, HTTP with binary tensors. Prints one line for each right answer; the first wrong one
ends it with its difference.
"""

import argparse
import json
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


def ask(library, client, model, request, binary):
    inputs = []
    for tensor in request["inputs"]:
        value = library.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        value.set_data_from_numpy(array(tensor), **({} if binary is None else {"binary_data": binary}))
        inputs.append(value)
    if binary is None:
        return client.infer(model, inputs)
    expected = request["expected"]["outputs"]
    return client.infer(model, inputs, outputs=[library.InferRequestedOutput(output["name"], binary_data=binary) for output in expected])


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--grpc", required=True)
    arguments.add_argument("--http", required=True)
    arguments.add_argument("--folder", required=True, type=Path)
    arguments.add_argument("models", nargs="+")
    given = arguments.parse_args()

    grpc, http = over_grpc.InferenceServerClient(given.grpc), over_http.InferenceServerClient(given.http, network_timeout=60)
    for client in [grpc, http]:
        assert client.is_server_live() and client.is_server_ready()
    ways = [("gRPC", over_grpc, grpc, None), ("HTTP, JSON", over_http, http, False), ("HTTP, binary", over_http, http, True)]
    for model in given.models:
        request = json.loads((given.folder / "requests" / f"{model}.json").read_text())
        request["expected"] = json.loads((given.folder / "expected" / f"{model}.json").read_text())
        for way, library, client, binary in ways:
            compare(f"{model} over {way}", request["expected"], ask(library, client, model, request, binary))
            print(f"right: {model} over {way}")
        # The default of the HTTP client: whatever the server offers.
        inputs = [over_http.InferInput(tensor["name"], tensor["shape"], tensor["datatype"]) for tensor in request["inputs"]]
        for value, tensor in zip(inputs, request["inputs"]):
            value.set_data_from_numpy(array(tensor))
        compare(f"{model} over HTTP", request["expected"], http.infer(model, inputs))
        print(f"right: {model} over HTTP")
        for client in [grpc, http]:
            assert client.is_model_ready(model), f"{model} is not ready"
        described = grpc.get_model_metadata(model)
        assert {one.name for one in described.inputs} == {one["name"] for one in request["inputs"]}, f"{model}: inputs of the metadata"
        described = http.get_model_metadata(model)
        assert {one["name"] for one in described["outputs"]} == {one["name"] for one in request["expected"]["outputs"]}, f"{model}: outputs of the metadata"


if __name__ == "__main__":
    main()

"""What gRPC clients are told: the id may come in a header, and the code of each refusal says whether trying again helps.

    codes.py --grpc ADDR --limit BYTES

with messages limited to BYTES and three models: iris is served, bad cannot be loaded, away cannot be fetched now.
"""

import argparse

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException


def iris(columns=4, name="X", rows=1):
    value = grpc.InferInput(name, [rows, columns], "FP32")
    value.set_data_from_numpy(np.full((rows, columns), 1.5, dtype=np.float32))
    return [value]


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def fields(data):
    """The fields of a protobuf message that has numbers, bytes and messages only, as (number, value)."""
    found, at = [], 0
    while at < len(data):
        key, at = varint(data, at)
        value, at = varint(data, at)
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        else:
            assert key & 7 == 0, f"wire type {key & 7}"
        found.append((key >> 3, value))
    return found


def seconds_to_wait(fault):
    """What google.rpc.RetryInfo in the trailing metadata says, or None where it is not there."""
    # The client library hides the error of gRPC behind its own.
    metadata = {key: value for key, value in fault.__context__.trailing_metadata() or ()}
    for number, detail in fields(metadata.get("grpc-status-details-bin", b"")):
        detail = dict(fields(detail)) if number == 3 else {}
        if detail.get(1) == b"type.googleapis.com/google.rpc.RetryInfo":
            return dict(fields(dict(fields(detail[2]))[1])).get(1, 0)
    return None


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--grpc", required=True)
    arguments.add_argument("--limit", required=True, type=int)
    given = arguments.parse_args()
    client = grpc.InferenceServerClient(given.grpc)

    by_name = client.infer("iris", iris())
    assert by_name.as_numpy("label").shape == (1,)
    for header in [{"mm-vmodel-id": "iris"}, {"mm-model-id": by_name.get_response().model_name}]:
        same = client.infer("", iris(), headers=header)
        assert same.as_numpy("probabilities").tolist() == by_name.as_numpy("probabilities").tolist(), header
        print(f"right: id in {list(header)}")

    # Whether trying the same again may help is told by RetryInfo.
    refused = [
        ("no model", "FAILED_PRECONDITION", ["model.onnx"], lambda: client.infer("bad", iris())),
        ("no store", "UNAVAILABLE", ["127.0.0.1"], lambda: client.infer("away", iris())),
        ("unknown model", "NOT_FOUND", ["tulips"], lambda: client.infer("tulips", iris())),
        ("unknown version", "NOT_FOUND", ["iris", "7"], lambda: client.infer("iris", iris(), model_version="7")),
        ("another shape", "INVALID_ARGUMENT", ["X", "4", "6"], lambda: client.infer("iris", iris(columns=6))),
        ("another tensor", "INVALID_ARGUMENT", ["X", "Y"], lambda: client.infer("iris", iris(name="Y"))),
        ("too large", "RESOURCE_EXHAUSTED", [str(given.limit)], lambda: client.infer("iris", iris(rows=given.limit // 8))),
    ]
    for case, code, parts, ask in refused:
        try:
            ask()
        except InferenceServerException as fault:
            assert fault.status() == f"StatusCode.{code}", f"{case}: {fault}"
            for part in parts:
                assert part in fault.message(), f"{case}: {part!r} is missing in {fault.message()}"
            wait = seconds_to_wait(fault)
            assert (wait is not None and wait > 0) == (code == "UNAVAILABLE"), f"{case}: to be tried again in {wait} s"
            print(f"right: {case} is {code}")
        else:
            raise AssertionError(f"{case}: was answered")


if __name__ == "__main__":
    main()

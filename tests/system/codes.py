"""What gRPC clients are told: the id may come in a header, and the code of each refusal says whether trying again helps.

    codes.py --grpc ADDR --limit BYTES     with the model iris served and messages limited to BYTES
"""

import argparse

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException


def iris(columns=4, name="X", rows=1):
    value = grpc.InferInput(name, [rows, columns], "FP32")
    value.set_data_from_numpy(np.full((rows, columns), 1.5, dtype=np.float32))
    return [value]


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

    refused = [
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
            print(f"right: {case} is {code}")
        else:
            raise AssertionError(f"{case}: was answered")


if __name__ == "__main__":
    main()

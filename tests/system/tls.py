"""Sends one recorded request over gRPC with TLS through tritonclient, and again on the same connection once a file is there.

    tls.py --grpc ADDR --ca FILE [--cert FILE --key FILE] [--again FILE] --request FILE.json MODEL

Prints "answered" each time. An answer that does not come ends it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import triton_to_np_dtype


def main():
    arguments = argparse.ArgumentParser()
    for name in ["--grpc", "--ca", "--request"]:
        arguments.add_argument(name, required=True)
    for name in ["--cert", "--key", "--again"]:
        arguments.add_argument(name)
    arguments.add_argument("model")
    given = arguments.parse_args()

    inputs = []
    for tensor in json.loads(Path(given.request).read_text())["inputs"]:
        value = triton.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        value.set_data_from_numpy(np.array(tensor["data"], dtype=triton_to_np_dtype(tensor["datatype"])).reshape(tensor["shape"]))
        inputs.append(value)
    client = triton.InferenceServerClient(
        given.grpc, ssl=True, root_certificates=given.ca, certificate_chain=given.cert, private_key=given.key
    )
    assert client.is_server_live()
    client.infer(given.model, inputs, client_timeout=60)
    print("answered", flush=True)
    if given.again:
        while not Path(given.again).exists():
            time.sleep(0.05)
        client.infer(given.model, inputs, client_timeout=60)
        print("answered", flush=True)


if __name__ == "__main__":
    main()

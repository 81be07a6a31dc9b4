"""Cases of tritonclient, the public client of the protocol, against a server with the models of the testkit.

    triton.py --grpc ADDR --http ADDR [CASE...]

The models are called echo, repeat and slow. Prints one line for each case that went right and ends with the first that did not.
"""

import argparse
import json
import queue

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

VALUES = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-32768, 32767], np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 2**63 - 1], np.int64),
    "FP16": np.array([-1.5, 65504.0], np.float16),
    "FP32": np.array([-1.5, 3.4028235e38, 1e-45], np.float32),
    "FP64": np.array([-1.5, 1.7976931348623157e308, 5e-324], np.float64),
    "BYTES": np.array(["a b".encode(), "\u00e9\u4e2d\U0001f600".encode(), b""], np.object_),
}
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def tensor(library, name, values, **binary):
    made = library.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values, **binary)
    return made


def given(library, types=VALUES, **binary):
    return [tensor(library, f"IN_{name}", VALUES[name], **binary) for name in types]


def same(answer, types=VALUES):
    for name in types:
        got, want = answer.as_numpy(f"OUT_{name}"), VALUES[name]
        assert got is not None, f"{name} is missing"
        plain = lambda values: [value.encode() if isinstance(value, str) else value for value in values.ravel().tolist()]
        assert got.shape == want.shape and plain(got) == plain(want), f"{name}: {got} instead of {want}"


def fails(call, message, status=None):
    """Calls, and checks how that fails: a part of the message, and the status as the client tells it."""
    try:
        call()
    except InferenceServerException as fault:
        assert message in fault.message(), f"{fault.message()!r} instead of {message!r}"
        assert status is None or fault.status() == status, f"{fault.status()} instead of {status}: {fault.message()}"
    else:
        raise AssertionError(f"no failure with {message!r}")


@case
def grpc_unary(clients):
    same(clients.grpc.infer("echo", given(over_grpc)))


@case
def grpc_parameters(clients):
    parameters = {"text": "\u00e9", "number": -7, "yes": True, "half": 0.5}
    answer = clients.grpc.infer("echo", given(over_grpc, ["FP32"]), request_id="an-id", parameters=parameters)
    got = json.loads(answer.as_numpy("PARAMETERS")[0])
    assert {name: got.get(name) for name in parameters} == parameters, got
    assert answer.get_response().id == "an-id", answer.get_response().id


@case
def grpc_async(clients):
    answers = queue.Queue()
    calls = [clients.grpc.async_infer("echo", given(over_grpc), lambda result, error: answers.put(error or result)) for _ in range(20)]
    for _ in calls:
        answer = answers.get(timeout=60)
        assert not isinstance(answer, Exception), answer
        same(answer)


def stream(clients, model, requests, **more):
    """Sends requests over one stream and yields the answers as they come."""
    answers = queue.Queue()
    with over_grpc.InferenceServerClient(clients.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for at, inputs in enumerate(requests):
            client.async_stream_infer(model, inputs, request_id=str(at), **more)
        while True:
            yield answers.get(timeout=60)


@case
def grpc_stream(clients):
    answers = stream(clients, "echo", [given(over_grpc, ["INT32", "BYTES"])] * 5)
    for at in range(5):
        answer = next(answers)
        assert not isinstance(answer, Exception), answer
        same(answer, ["INT32", "BYTES"])
        assert answer.get_response().id == str(at), answer.get_response().id
    answers.close()


@case
def grpc_decoupled(clients):
    values = np.arange(1, 101, dtype=np.int32)
    answers = stream(clients, "repeat", [[tensor(over_grpc, "IN", values)]], enable_empty_final_response=True)
    for want in values:
        answer = next(answers)
        assert not isinstance(answer, Exception), answer
        assert answer.as_numpy("OUT").tolist() == [want]
    last = next(answers).get_response()
    assert last.parameters["triton_final_response"].bool_param and not last.outputs, last
    answers.close()


@case
def grpc_decoupled_error(clients):
    """An error of one request is a message on the stream, which goes on."""
    requests = [[tensor(over_grpc, "IN", np.array(values, np.int32))] for values in ([-1], [5])]
    answers = stream(clients, "repeat", requests)
    first = next(answers)
    assert isinstance(first, InferenceServerException) and "minus one" in first.message(), first
    assert next(answers).as_numpy("OUT").tolist() == [5]
    answers.close()


@case
def grpc_compressed(clients):
    for algorithm in ["gzip", "deflate"]:
        same(clients.grpc.infer("echo", given(over_grpc), compression_algorithm=algorithm))


@case
def grpc_timeout(clients):
    seconds = [tensor(over_grpc, "SECONDS", np.array([60], np.float32))]
    call = lambda: clients.grpc.infer("slow", seconds, client_timeout=0.5, request_id="timed-out")
    fails(call, "Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")


@case
def grpc_cancel(clients):
    answers = queue.Queue()
    seconds = [tensor(over_grpc, "SECONDS", np.array([60], np.float32))]
    call = clients.grpc.async_infer("slow", seconds, lambda result, error: answers.put(error or result), request_id="cancelled")
    call.cancel()
    answer = answers.get(timeout=30)
    assert isinstance(answer, InferenceServerException) and answer.status() == "StatusCode.CANCELLED", answer


@case
def grpc_large(clients):
    values = np.arange(3_900_000, dtype=np.float32)  # 15.6 MB: below the usual limit
    answer = clients.grpc.infer("echo", [tensor(over_grpc, "IN_FP32", values)])
    assert np.array_equal(answer.as_numpy("OUT_FP32"), values)


@case
def grpc_wrong(clients):
    strange = [tensor(over_grpc, "NONE", VALUES["FP32"])]
    fails(lambda: clients.grpc.infer("echo", strange), "NONE", "StatusCode.INVALID_ARGUMENT")
    mistyped = [tensor(over_grpc, "IN_FP32", VALUES["FP64"])]
    fails(lambda: clients.grpc.infer("echo", mistyped), "IN_FP32", "StatusCode.INVALID_ARGUMENT")


@case
def grpc_described(clients):
    for model in ["echo", "repeat", "slow"]:
        assert clients.grpc.is_model_ready(model)
        assert clients.grpc.get_model_metadata(model).name == model
    assert clients.grpc.get_model_config("repeat").config.model_transaction_policy.decoupled


@case
def http_json(clients):
    # JSON has no 16-bit floats; and texts, no bytes.
    types = [name for name in VALUES if name != "FP16"]
    outputs = [over_http.InferRequestedOutput(f"OUT_{name}", binary_data=False) for name in types]
    same(clients.http.infer("echo", given(over_http, types, binary_data=False), outputs=outputs), types)


@case
def http_binary(clients):
    same(clients.http.infer("echo", given(over_http, binary_data=True)))


@case
def http_mixed(clients):
    types = ["INT64", "FP64", "BYTES"]
    inputs = [tensor(over_http, f"IN_{name}", VALUES[name], binary_data=at % 2 == 0) for at, name in enumerate(types)]
    outputs = [over_http.InferRequestedOutput(f"OUT_{name}", binary_data=at % 2 == 1) for at, name in enumerate(types)]
    same(clients.http.infer("echo", inputs, outputs=outputs), types)


@case
def http_compressed(clients):
    for algorithm in ["gzip", "deflate"]:
        more = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        same(clients.http.infer("echo", given(over_http), **more))


@case
def http_async(clients):
    calls = [clients.http.async_infer("echo", given(over_http)) for _ in range(8)]
    for call in calls:
        same(call.get_result(timeout=60))


@case
def http_parameters(clients):
    parameters = {"text": "\u00e9", "number": -7, "yes": True}
    answer = clients.http.infer("echo", given(over_http, ["FP32"]), request_id="an-id", parameters=parameters)
    got = json.loads(answer.as_numpy("PARAMETERS")[0])
    assert {name: got.get(name) for name in parameters} == parameters, got
    assert answer.get_response()["id"] == "an-id", answer.get_response()


@case
def http_wrong(clients):
    strange = [tensor(over_http, "NONE", VALUES["FP32"])]
    fails(lambda: clients.http.infer("echo", strange), "NONE", "400")


class Clients:
    def __init__(self, grpc, http):
        self.grpc_address = grpc
        self.grpc = over_grpc.InferenceServerClient(grpc)
        self.http = over_http.InferenceServerClient(http, concurrency=8, network_timeout=60)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--grpc", required=True)
    arguments.add_argument("--http", required=True)
    arguments.add_argument("cases", nargs="*", default=[])
    given = arguments.parse_args()
    clients = Clients(given.grpc, given.http)
    for name in given.cases or CASES:
        CASES[name](clients)
        print(f"right: {name}", flush=True)


if __name__ == "__main__":
    main()

"""Takes as many SECONDS as it is told, or until its caller gives up; says in the log when it begins and how it ends."""

import time

import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = backend.get_input_tensor_by_name(request, "SECONDS")
            backend.Logger.log_warn(f"slow: begun {request.request_id()}")
            end = time.monotonic() + float(seconds.as_numpy()[0])
            while time.monotonic() < end and not request.is_cancelled():
                time.sleep(0.01)
            if request.is_cancelled():
                backend.Logger.log_warn(f"slow: cancelled {request.request_id()}")
                responses.append(backend.InferenceResponse(error=backend.TritonError("cancelled", backend.TritonError.CANCELLED)))
                continue
            backend.Logger.log_warn(f"slow: ended {request.request_id()}")
            responses.append(backend.InferenceResponse([backend.Tensor("SLEPT", seconds.as_numpy())]))
        return responses

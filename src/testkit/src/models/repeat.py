"""Decoupled: as many answers as IN has elements, one element each; none for an empty IN. -1 ends with an error."""

import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            values = backend.get_input_tensor_by_name(request, "IN").as_numpy()
            for at in range(len(values)):
                if values[at] == -1:
                    sender.send(backend.InferenceResponse(error=backend.TritonError("minus one", backend.TritonError.INVALID_ARG)))
                else:
                    sender.send(backend.InferenceResponse([backend.Tensor("OUT", values[at : at + 1])]))
            sender.send(flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

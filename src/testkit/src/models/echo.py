"""Sends each input IN_X back as OUT_X, and the parameters of the request as JSON in PARAMETERS."""

import numpy as np
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        return [backend.InferenceResponse(self.outputs(request)) for request in requests]

    def outputs(self, request):
        yield_of = lambda tensor: backend.Tensor(tensor.name().replace("IN_", "OUT_"), tensor.as_numpy())
        parameters = backend.Tensor("PARAMETERS", np.array([request.parameters().encode()], dtype=np.object_))
        return [yield_of(tensor) for tensor in request.inputs()] + [parameters]

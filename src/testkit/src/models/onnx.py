"""Serves model.onnx: each input and output of the configuration is one of the file's, by name."""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


def plain(values):
    """Texts as bytes, which is how they travel."""
    return np.array([value.encode() for value in values.ravel()], dtype=np.object_).reshape(values.shape) if values.dtype == object else values


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs, self.outputs = ([one["name"] for one in config[side]] for side in ("input", "output"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            given = {name: backend.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            made = self.session.run(self.outputs, given)
            responses.append(backend.InferenceResponse([backend.Tensor(name, plain(values)) for name, values in zip(self.outputs, made)]))
        return responses

"""A backend of Triton named onnxruntime: serves NAME/VERSION/model.onnx with ONNX Runtime, and completes its configuration."""

import os

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb

TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


def plain(values):
    """Texts as bytes, which is how they travel."""
    return np.array([value.encode() for value in values.ravel()], dtype=np.object_).reshape(values.shape) if values.dtype == object else values


def session(folder):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = os.path.join(folder, "model.onnx")
    if os.path.isdir(path):
        path = os.path.join(path, "model.onnx")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def described(tensor):
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "data_type": TYPES[tensor.type], "dims": dims}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        known = config.as_dict()
        folder = os.path.join(os.environ.get("BERTH_TEST_REPOSITORY", ""), known["name"])
        version = max((entry for entry in os.listdir(folder) if entry.isdigit()), key=int)
        model = session(os.path.join(folder, version))
        if not known["input"]:
            for tensor in model.get_inputs():
                config.add_input(described(tensor))
        if not known["output"]:
            for tensor in model.get_outputs():
                config.add_output(described(tensor))
        config.set_max_batch_size(known["max_batch_size"])
        return config

    def initialize(self, args):
        self.session = session(os.path.join(args["model_repository"], args["model_version"]))
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]

    def execute(self, requests):
        answers = []
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            wanted = [name for name in self.outputs if name in request.requested_output_names()]
            try:
                values = self.session.run(wanted, inputs)
                answers.append(pb.InferenceResponse([pb.Tensor(name, plain(value)) for name, value in zip(wanted, values)]))
            except Exception as fault:
                answers.append(pb.InferenceResponse([], pb.TritonError(str(fault), pb.TritonError.INVALID_ARG)))
        return answers

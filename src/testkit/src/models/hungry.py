"""Takes as much memory as the file beside it says: a share of its weights in percent."""

import os

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        place = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(place, "percent")) as file:
            percent = int(file.read())
        # Written to, so that it is there and not only promised.
        self.weights = np.ones(os.path.getsize(os.path.join(place, "weights")) * percent // 100, dtype=np.uint8)

    def execute(self, requests):
        tensors = [pb.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("OUT", tensor + self.weights[-1])]) for tensor in tensors]

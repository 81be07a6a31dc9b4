"""Doubles the FP32 numbers of input `x`; of `sleep`, waits as many seconds first. An archive whose model is not FP32 cannot be loaded."""

import os
import time

import torch


class Handler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.model = torch.jit.load(os.path.join(folder, "model.pt"))
        if os.path.exists(os.path.join(folder, "refuses")):
            raise ValueError("this model refuses to be loaded")

    def handle(self, data, context):
        answers = []
        for row in data:
            if "sleep" in row:
                time.sleep(float(bytes(row["sleep"])))
            values = torch.frombuffer(bytearray(row["x"]), dtype=torch.float32)
            answers.append(self.model(values).numpy().tobytes())
        return answers

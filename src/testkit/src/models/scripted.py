"""Multiplies IN by a number of its own. While it is loaded, and while it computes, it does what the file beside it says:
`waits` reads a file to its end (of a FIFO, which lasts until somebody has written it), `kills` ends the whole server. It
says on standard error what it begins to do."""

import json
import os
import signal
import sys

import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        with open(os.path.join(args["model_repository"], args["model_version"], "script.json")) as file:
            self.script = json.load(file)
        self.act("load")

    def execute(self, requests):
        self.act("infer")
        tensors = [pb.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("OUT", tensor * tensor.dtype.type(self.script["factor"]))]) for tensor in tensors]

    def act(self, stage):
        todo = self.script.get(stage, {})
        if todo:
            print(f"scripted: {self.name} begins to {stage}", file=sys.stderr, flush=True)
        if "waits" in todo:
            with open(todo["waits"]) as gate:
                gate.read()
        if todo.get("kills"):
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()

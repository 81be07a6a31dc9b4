"""Writes two archives for TorchServe into a folder: double.mar, and refuses.mar, whose handler does not start."""

import json
import os
import sys
import tempfile
import zipfile

import torch


class Double(torch.nn.Module):
    def forward(self, x):
        return x * 2


folder, handler = sys.argv[1:]
with tempfile.TemporaryDirectory() as work:
    traced = os.path.join(work, "model.pt")
    torch.jit.trace(Double(), torch.ones(3)).save(traced)
    for name in ("double", "refuses"):
        manifest = {
            "createdOn": "01/01/2026 00:00:00",
            "runtime": "python",
            "model": {"modelName": name, "serializedFile": "model.pt", "handler": "handler.py", "modelVersion": "1.0"},
            "archiverVersion": "0.12.0",
        }
        with zipfile.ZipFile(os.path.join(folder, name + ".mar"), "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            archive.write(traced, "model.pt")
            archive.write(handler, "handler.py")
            if name == "refuses":
                archive.writestr("refuses", "")

"""A runtime of one file: linear layers as JSON, computed by NumPy."""

import json
from pathlib import Path

import numpy as np

from lighten.delivery.export.prepare import source_of
from lighten.delivery.export.proof import prove
from lighten.delivery.export.request import Request
from lighten.delivery.runtimes.runners import Runner
from lighten.utils.targets import Target

TOY = Target("toy", "Toy Runtime", ".toy", "numpy", "numpy", "toy_target:ToyRunner", "toy_target:write")


class ToyRunner(Runner):
    runtime = "toy"

    def __init__(self, path, threads=1):
        self.name, self.threads = str(path), threads
        self.layer = {name: np.array(value, np.float32) for name, value in json.loads(path.read_text()).items()}

    def feed(self, call):
        return np.asarray(call[0][0])

    def run_all(self, feed):
        return [feed @ self.layer["weight"].T + self.layer["bias"]]

    def count(self, sample):
        weight, bias = self.layer["weight"], self.layer["bias"]
        return {"parameters": weight.size + bias.size, "macs": weight.size, "bytes": Path(self.name).stat().st_size}


def write(request: Request) -> None:
    source = source_of(request.model, request.example, request.outputs)
    layer = {name.removeprefix("model."): value.tolist() for name, value in source.network.state_dict().items()}
    request.store(json.dumps(layer).encode())
    prove(request.path, source.network, [source.inputs], quantized=False, name=request.path)

"""The runner of ExecuTorch files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lighten.delivery.runtimes.feeds import by_position, no_fact, piece_by_piece, readable, runnable
from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent
from lighten.delivery.runtimes.runners import Runner, Size
from lighten.utils.inputs import Call


class ExecuTorchRunner(Runner):
    """An ExecuTorch file on the CPU, ``threads`` wide.

    The file has a fixed batch, one as ``export`` writes it: a larger batch is run piece by piece, which is what its
    user does, and so is the latency that is measured. The threads are those of the whole process.
    """

    runtime = "executorch"

    def __init__(self, path: Path, threads: int = 1) -> None:
        runtime, library = need("executorch", "executorch.runtime", "executorch.extension.pybindings.portable_lib")
        self.name, self.threads = str(path), threads
        with readable(path, "ExecuTorch"), silent():
            library._unsafe_reset_threadpool(threads)
            self.program = runtime.Runtime.get().load_program(path)
            self.method = self.program.load_method("forward")
        self.inputs = [self.method.metadata.input_tensor_meta(i) for i in range(self.method.metadata.num_inputs())]

    def feed(self, call: Call) -> list[np.ndarray]:
        """Return the call as arrays by position; keywords in their order."""
        return by_position(self.name, [entry.sizes() for entry in self.inputs], call)

    def run_all(self, feed: list[np.ndarray]) -> list[np.ndarray]:
        """Run the file, once a sample.

        Raises:
            UserError: if the runtime refuses the batch.
        """
        with runnable(self.name):
            return piece_by_piece(feed, int(self.inputs[0].sizes()[0]), self._run)

    def facts(self, name: str) -> int:
        """Return what ``export`` wrote into the file under ``name``.

        Raises:
            UserError: if it is not there.
        """
        if name not in self.program.method_names:
            raise no_fact(self.name, name)
        return int(self.program.load_method(name).execute([])[0])

    def count(self, sample: Call) -> Size:
        """Return what ``export`` counted, and the file's bytes."""
        size = Path(self.name).stat().st_size
        return {"parameters": self.facts("parameters"), "macs": self.facts("macs"), "bytes": size}

    def _run(self, feed: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [x.float().numpy().copy() for x in self.method.execute([torch.from_numpy(x) for x in feed])]

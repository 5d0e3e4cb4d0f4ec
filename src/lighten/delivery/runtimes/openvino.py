"""The runner of OpenVINO files."""

from pathlib import Path

import numpy as np

from lighten.delivery.runtimes.feeds import by_name, by_name_in_pieces, fixed_batch, no_fact, readable, runnable
from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent
from lighten.delivery.runtimes.runners import Runner, Size
from lighten.utils.inputs import Call
from lighten.utils.targets import with_parts


class OpenVinoRunner(Runner):
    """An OpenVINO file on the CPU: one stream, ``threads`` wide; what is not int8 is computed in float32.

    A file with a fixed batch runs another one piece by piece, as ``OnnxRunner`` does.
    """

    runtime = "openvino"

    def __init__(self, path: Path, threads: int = 1) -> None:
        (openvino,) = need("openvino", "openvino")
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self.name, self.threads = str(path), threads
        with readable(path, "OpenVINO"), silent():
            core = openvino.Core()
            graph = core.read_model(path)
            self.model = core.compile_model(graph, "CPU", settings)
        self.graph = graph
        self.inputs = [entry.any_name for entry in self.model.inputs]
        shapes = [entry.partial_shape for entry in self.model.inputs]
        self.batch = fixed_batch([[x.get_length() if x.is_static else None for x in shape] for shape in shapes])

    def feed(self, call: Call) -> dict[str, np.ndarray]:
        """Return the call as arrays by input name: positional ones in the file's order."""
        return by_name(self.name, self.inputs, call)

    def run_all(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the file once.

        Raises:
            UserError: if the runtime refuses the batch.
        """
        with runnable(self.name):
            return by_name_in_pieces(feed, self.batch, lambda piece: list(self.model(piece).to_tuple()))

    def facts(self, name: str) -> int:
        """Return what ``export`` wrote into the file under ``name``.

        Raises:
            UserError: if it is not there.
        """
        if not self.graph.has_rt_info(["lighten", name]):
            raise no_fact(self.name, name)
        return int(self.graph.get_rt_info(["lighten", name]).value)

    def count(self, sample: Call) -> Size:
        """Return what ``export`` counted; its bytes are those of both files."""
        size = sum(path.stat().st_size for path in with_parts(Path(self.name)))
        return {"parameters": self.facts("parameters"), "macs": self.facts("macs"), "bytes": size}

"""The runner of ONNX files, in onnxruntime."""

from pathlib import Path

import numpy as np

from lighten.delivery.runtimes.feeds import by_name, by_name_in_pieces, fixed_batch
from lighten.delivery.runtimes.onnx_count import count_onnx
from lighten.delivery.runtimes.onnx_session import open_session
from lighten.delivery.runtimes.runners import Runner, Size
from lighten.errors import UserError, first_line
from lighten.utils.inputs import Call


class OnnxRunner(Runner):
    """An ONNX file in onnxruntime on the CPU: sequential, ``threads`` wide, its threads never spinning.

    A file with a fixed batch runs another one piece by piece, which is what its user does, and so is the latency that
    is measured. With ``exact`` no sum of 8-bit products saturates, on no processor; that takes longer.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int = 1, *, exact: bool = False) -> None:
        self.name, self.threads = str(path), threads
        self.session = open_session(path, path, threads=threads, precise=exact)
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.batch = fixed_batch([entry.shape for entry in self.session.get_inputs()])

    def feed(self, call: Call) -> dict[str, np.ndarray]:
        """Return the call as arrays by input name: positional ones in the file's order."""
        return by_name(self.name, self.inputs, call)

    def run_all(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the file once.

        Raises:
            UserError: if the runtime refuses the batch, for instance its size.
        """
        try:
            return by_name_in_pieces(feed, self.batch, self._run)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            reason = first_line(error)
            raise UserError(f"{self.name}: cannot run this batch ({reason}); export it with a dynamic batch") from None

    def count(self, sample: Call) -> Size:
        """Count the file with the shapes that ``sample`` has in it."""
        samples = self.batch or 1
        feed = {name: x.repeat(samples, 0) if x.ndim and len(x) == 1 else x for name, x in self.feed(sample).items()}
        size = count_onnx(Path(self.name), feed)
        return {**size, "macs": size["macs"] // samples}

    def _run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(x) for x in self.session.run(None, feed)]

"""The runner of files of ``torch.export``, in PyTorch."""

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lighten.delivery.runtimes.feeds import by_name, by_name_in_pieces, fixed_batch, no_fact, readable, runnable
from lighten.delivery.runtimes.quiet import silent
from lighten.delivery.runtimes.runners import Runner, Size
from lighten.errors import UserError, shown
from lighten.utils.inputs import Call

FACTS = "lighten.json"
"""The entry of a file that holds what ``export`` says of it: names of inputs, parameters, MACs."""
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.\w+\.\w+|torch\.ops\.higher_order\.\w+|torch\.sym_\w+"
    r"|math\.\w+|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
"""What the graph of a file may call; of another name its loader would make any function of Python."""
TENSOR = re.compile(r"(weight|tensor)_\d+$")
"""What entries are called that hold plain numbers."""
SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=True)*\)")
EXPRESSION = re.compile(r"(?!.*(__|\)\s*\(|\b[a-z_]\w*\s*\())[\w\s+\-*/%(),<>=]*")
"""What sizes may be computed by, symbols aside: its loader evaluates them as Python."""


class Pt2Runner(Runner):
    """A file of ``torch.export`` on the CPU, ``threads`` wide, as it was traced: nothing is compiled.

    A file with a fixed batch runs another one piece by piece, as ``OnnxRunner`` does.
    """

    runtime = "torch.export"

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.name, self.threads = str(path), threads
        check_plain(path)
        import_module("torch.ao.quantization.fx._decomposed")  # registers the operators that quantize
        found: dict[str, Any] = {FACTS: ""}
        with readable(path, "torch.export"), silent():
            program = torch.export.load(path, extra_files=found)
            self.facts: dict[str, Any] = json.loads(found[FACTS] or "{}")
            self.module = program.module(check_guards=False)  # these are code
            inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
        self.shapes = [[x if isinstance(x, int) else None for x in node.meta["val"].shape] for node in inputs]
        self.inputs = self.facts.get("inputs", [node.name for node in inputs])
        self.batch = fixed_batch(self.shapes)

    def feed(self, call: Call) -> dict[str, np.ndarray]:
        """Return the call as arrays by input name: positional ones in the file's order."""
        return by_name(self.name, self.inputs, call)

    def run_all(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the file once.

        Raises:
            UserError: if it does not take the batch, for instance its size.
        """
        with runnable(self.name), _threads(self.threads), torch.no_grad():
            return by_name_in_pieces(feed, self.batch, self._run)

    def count(self, sample: Call) -> Size:
        """Return what ``export`` counted, and the file's bytes."""
        for name in ("parameters", "macs"):
            if name not in self.facts:
                raise no_fact(self.name, name)
        size = Path(self.name).stat().st_size
        return {"parameters": self.facts["parameters"], "macs": self.facts["macs"], "bytes": size}

    def _run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        given = [torch.from_numpy(feed[name]) for name in self.inputs]
        for name, x, shape in zip(self.inputs, given, self.shapes, strict=True):
            if len(shape) != x.ndim or any(size not in (None, n) for size, n in zip(shape, x.shape, strict=False)):
                fixed = ", ".join("any" if size is None else str(size) for size in shape)
                raise ValueError(f"{name} is {tuple(x.shape)}, expected ({fixed})")
        found = self.module(*given)
        return [x.float().numpy() for x in (found if isinstance(found, tuple | list) else (found,))]


def check_plain(path: Path) -> None:
    """Refuse a file that would run code as it is opened: one with pickles, or with calls that are no operators.

    Raises:
        UserError: if it is no file of ``torch.export``, or holds these.
    """
    with readable(path, "torch.export"), zipfile.ZipFile(path) as archive:
        sizes = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
        if len(sizes) < len(archive.namelist()):
            raise ValueError("it has two entries of one name")
        root = archive.namelist()[0].partition("/")[0]
        read = {name: json.loads(archive.read(f"{root}/{name}")) for name in sizes if name.endswith(".json")}
        graphs = [content for name, content in read.items() if name.startswith("models/")]
        if not graphs:
            raise ValueError("no graph is in it")
        stored = [each for name in read if name.endswith("_config.json") for each in read[name]["config"].values()]
        found = [f"the pickle {name}" for name, size in sizes.items() if name.endswith(".pt") and size]
        found += [f"the pickle {x['path_name']}" for x in stored if x["use_pickle"] or not TENSOR.match(x["path_name"])]
        found += [f"{call!r}" for graph in graphs for call in _foreign(graph)]
    if found:
        raise UserError(f"{path}: holds {shown(found[0])}, which may run any code; have it written by lighten.export")


def _foreign(value: Any) -> Iterator[str]:
    """Yield the calls and expressions of a graph that are neither operators nor arithmetic."""
    if isinstance(value, list):
        for item in value:
            yield from _foreign(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "target" and isinstance(item, str) and "inputs" in value and not OPERATORS.fullmatch(item):
                yield item
            elif key == "expr_str" and not EXPRESSION.fullmatch(SYMBOL.sub("s", str(item))):
                yield str(item)
            yield from _foreign(item)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The writer of OpenVINO's pairs of files: ``model.xml``, the graph, and ``model.bin``, the numbers."""

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighten.delivery.export.onnx import OPSETS, proved_onnx
from lighten.delivery.export.prepare import source_of
from lighten.delivery.export.request import Request
from lighten.delivery.export.work import work_of_sample
from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent
from lighten.utils.files import PREFIX, SUFFIX, name_target_in_errors, replace_together

MARGIN = 2**20
"""Bytes that a graph may have beyond what its ONNX file has."""


def write(request: Request) -> None:
    """Write OpenVINO's pair of files by way of an ONNX file."""
    source = source_of(request.model, request.example, request.outputs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        proved_onnx(source, file, request, OPSETS.start, wide=False)
        request.path.parent.mkdir(parents=True, exist_ok=True)
        write_openvino(file, request.path, work_of_sample(source))


def write_openvino(onnx: Path, path: Path, facts: Mapping[str, int]) -> None:
    """Convert an ONNX file to ``path`` and the ``.bin`` file beside it, numbers as they are.

    ``facts`` are kept in the graph's runtime information, under ``lighten``. The old ``.xml`` file goes before
    the ``.bin`` file is replaced: no reader sees a graph with another's numbers.

    Raises:
        UserError: if OpenVINO is not installed.
        DiskError: if the disk refuses; the old files then stay.
    """
    (openvino,) = need("openvino", "openvino")
    with name_target_in_errors(path):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=path.parent))
        try:
            with silent():
                model = openvino.Core().read_model(onnx)  # convert_model would report its use over the network
                for name, value in facts.items():
                    model.set_rt_info(str(value), ["lighten", name])
                for number, node in enumerate(model.get_ordered_ops()):
                    kind = node.get_type_name()
                    if node.get_friendly_name().removeprefix(f"{kind}_").isdecimal():
                        node.set_friendly_name(f"{kind}_{number}")  # OpenVINO's own names count on through a process
                _save(openvino, model, folder, room=2 * onnx.stat().st_size + MARGIN)
            replace_together({folder / "model.bin": path.with_suffix(".bin"), folder / "model.xml": path})
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _save(openvino: Any, model: Any, folder: Path, *, room: int) -> None:
    """Save; OpenVINO does not know why a disk refuses, so ``room`` bytes more than it has written are tried."""
    try:
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    except RuntimeError as error:
        if "iostream" not in str(error):
            raise
        room += sum(path.stat().st_size for path in folder.iterdir())
        with (folder / "again").open("wb") as file:
            file.write(bytes(room))
            file.flush()
            os.fsync(file.fileno())
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

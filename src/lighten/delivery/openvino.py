"""OpenVINO's form of a model: ``model.xml``, the graph, and ``model.bin`` beside it, the numbers."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lighten.delivery.extras import need
from lighten.delivery.quiet import silent
from lighten.training.files import PREFIX, SUFFIX, replace_file


def write_openvino(onnx: Path, path: Path, facts: Mapping[str, int]) -> None:
    """Convert an ONNX file to ``path`` and the ``.bin`` file beside it, numbers as they are.

    ``facts`` are kept in the graph's runtime information, under ``lighten``. The old ``.xml`` file goes before
    the ``.bin`` file is replaced: no reader sees a graph with another's numbers.

    Raises:
        UserError: if OpenVINO is not installed.
    """
    (openvino,) = need("openvino", "openvino")
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
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        graph, numbers = (folder / "model.xml").read_bytes(), (folder / "model.bin").read_bytes()
        path.unlink(missing_ok=True)
        replace_file(path.with_suffix(".bin"), lambda file: file.write(numbers))
        replace_file(path, lambda file: file.write(graph))
    finally:
        shutil.rmtree(folder)

"""The writer of files of ``torch.export``, ``.pt2``, which PyTorch itself loads."""

import io
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lighten.delivery.export.dimensions import Open
from lighten.delivery.export.one_sample import with_mode
from lighten.delivery.export.prepare import source_of
from lighten.delivery.export.proved import proved_bytes, traced_program
from lighten.delivery.export.request import Request
from lighten.delivery.export.work import work_of_sample
from lighten.delivery.runtimes.pt2 import FACTS
from lighten.delivery.runtimes.quiet import quiet
from lighten.delivery.runtimes.signature import Graph
from lighten.quantization.fake_quant import forbidden


def write(request: Request) -> None:
    """Write a file of ``torch.export``."""
    model, _ = with_mode(request)
    source = source_of(model, request.example, request.outputs)
    facts = work_of_sample(source)

    def convert(graph: Graph, inputs: tuple[Tensor, ...], dimensions: Open) -> bytes:
        with quiet(), forbidden(), torch.no_grad():
            program = traced_program(graph, inputs, dimensions)
            for node in program.graph.nodes:  # it says where the code lay, and in what
                node.meta = {key: value for key, value in node.meta.items() if key == "val"}
            program._example_inputs = None  # these would be pickled
            content = io.BytesIO()
            said = {"inputs": graph.inputs, "outputs": graph.outputs, **facts}
            torch.export.save(program, content, extra_files={FACTS: json.dumps(said)})
            return content.getvalue()

    with tempfile.TemporaryDirectory() as folder:
        content = proved_bytes(source, request, Path(folder) / "model.pt2", convert)
    request.store(content)

"""The table of targets: each runtime that a model can be exported for, and where its parts live.

It holds names alone, so that recipes, delivery and the command line can read it; a runtime is imported when it is used.
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A runtime and its kind of file.

    Attributes:
        name: what ``export(target=…)`` and ``delivery.targets`` take.
        title: how reports and cards write it.
        suffix: how its files end.
        package: what writes its files, as ``pip`` calls it.
        runtime: what runs them, as ``pip`` calls it.
        runner: ``"module:class"`` of its ``Runner``.
        writer: ``"module:function"`` that writes a file, given an ``export.request.Request``.
        beside: suffixes of files that belong to each of its files.
        settings: what ``export`` takes for it, of ``opset``, ``batch``, ``dynamic`` and ``mode``.
        modes: quantization after training that its files can hold.
        extra: lighten's extra that installs it; ``None`` where lighten itself does.
    """

    name: str
    title: str
    suffix: str
    package: str
    runtime: str
    runner: str
    writer: str
    beside: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    extra: str | None = None


_ALL_MODES = ("static", "dynamic", "float16", "bfloat16")
_RUNTIMES, _EXPORT = "lighten.delivery.runtimes", "lighten.delivery.export"

TARGETS = {
    target.name: target
    for target in (
        Target(
            "onnx", "ONNX", ".onnx", "onnx", "onnxruntime", f"{_RUNTIMES}.onnx:OnnxRunner", f"{_EXPORT}.onnx:write",
            settings=("opset", "batch", "dynamic"), modes=_ALL_MODES,
        ),
        Target(
            "openvino", "OpenVINO", ".xml", "openvino", "openvino", f"{_RUNTIMES}.openvino:OpenVinoRunner",
            f"{_EXPORT}.openvino:write", beside=(".bin",), settings=("batch", "dynamic"), modes=_ALL_MODES,
            extra="openvino",
        ),
        Target(
            "litert", "LiteRT", ".tflite", "litert-torch", "ai-edge-litert", f"{_RUNTIMES}.litert:LiteRtRunner",
            f"{_EXPORT}.litert:write", settings=("mode",), modes=("static", "dynamic", "float16"), extra="litert",
        ),
        Target(
            "executorch", "ExecuTorch", ".pte", "executorch", "executorch", f"{_RUNTIMES}.executorch:ExecuTorchRunner",
            f"{_EXPORT}.executorch:write", modes=("static",), extra="executorch",
        ),
        Target(
            "pt2", "PyTorch", ".pt2", "torch", "torch", f"{_RUNTIMES}.pt2:Pt2Runner", f"{_EXPORT}.pt2:write",
            settings=("batch", "dynamic"), modes=("static",),
        ),
    )
}  # fmt: skip
"""All targets by name, in the order in which they are shown."""


def exported_files(stem: str, *, besides: Container[str] = ()) -> list[str]:
    """Return the names of the files that a model called ``stem`` has for all targets, ``besides`` some."""
    found = [target for target in TARGETS.values() if target.name not in besides]
    return [f"{stem}{suffix}" for target in found for suffix in (target.suffix, *target.beside)]


def with_parts(path: Path) -> list[Path]:
    """Return a file of any target, and those that belong to it."""
    beside = [suffix for target in TARGETS.values() if target.suffix == path.suffix for suffix in target.beside]
    return [path, *(path.with_suffix(suffix) for suffix in beside)]

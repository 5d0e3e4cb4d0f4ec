"""The panels of the W&B workspace, which the report draws too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One panel.

    ``lines`` draws ``metrics`` over optimizer steps, ``family`` all whose names begin so, ``system`` the machine's over
    time; ``bars`` and ``axes`` compare the final figures of runs, ``scatter`` two or three of them (across, up, colour)
    with the best so far from small to large: the Pareto front. ``table`` is one that each run has.
    """

    kind: Literal["lines", "family", "system", "bars", "scatter", "axes", "table"]
    title: str
    metrics: Sequence[str]
    log: bool = False


def _both(name: str, title: str) -> Panel:
    return Panel("lines", title, [f"teacher/{name}", f"student/{name}"])


def _each(name: str, title: str) -> Panel:
    return Panel("bars", title, [f"delivery/{model}/{name}" for model in ("teacher", "student", "compressed")])


SIZE, ACCURACY, TIME = (f"delivery/compressed/{name}" for name in ("bytes", "accuracy", "latency_batch_1_ms"))

SECTIONS: dict[str, list[Panel]] = {
    "Student against teacher": [
        _both("accuracy", "Accuracy"),
        _both("macro_f1", "Macro-F1"),
        _both("loss", "Cross-entropy on validation"),
        _both("worst_class", "Recall of the worst class"),
        _both("ece", "Calibration error"),
        Panel("lines", "Gap: teacher minus student", ["gap/accuracy", "gap/macro_f1", "gap/loss"]),
        Panel("lines", "Student's accuracy over the teacher's, and same answers", ["gap/retention", "gap/agreement"]),
        Panel("lines", "KL divergence from the teacher", ["gap/kl"]),
        Panel("lines", "Training loss", ["train/loss"]),
        Panel("family", "Shares of the losses", ["distil/share/"]),
        Panel("lines", "Learning rate", ["lr"]),
        Panel("table", "Confusion on the test split", ["confusion"]),
    ],
    "Compression": [
        Panel("lines", "Pruned: asked, channels, MACs", ["prune/amount", "prune/sparsity", "prune/macs"]),
        Panel("family", "Channels kept of each group", ["prune/kept/"]),
        Panel("lines", "Int8: on, ranges frozen", ["quantize/enabled", "quantize/frozen"]),
        Panel("family", "Activations: lowest", ["quantize/low/"]),
        Panel("family", "Activations: highest", ["quantize/high/"]),
        _each("bytes", "Bytes"),
        _each("parameters", "Parameters"),
        _each("macs", "Multiply-accumulates of one sample"),
        Panel("bars", "Times smaller", ["delivery/size_ratio", "delivery/parameter_ratio", "delivery/mac_ratio"]),
        Panel("table", "Pruning plan", ["plan"]),
    ],
    "Speed": [
        Panel("scatter", "Accuracy over bytes", [SIZE, ACCURACY, TIME], log=True),
        Panel("scatter", "Accuracy over latency at batch 1 (ms)", [TIME, ACCURACY, SIZE], log=True),
        Panel("axes", "Bytes, latency, accuracy", [SIZE, TIME, ACCURACY]),
        _each("latency_batch_1_ms", "Latency at batch 1 (ms)"),
        _each("latency_batch_32_ms", "Latency at batch 32 (ms)"),
        Panel("bars", "Times faster", ["delivery/speedup_batch_1", "delivery/speedup_batch_32"]),
        Panel("bars", "Share of the teacher's accuracy kept", ["delivery/retention"]),
    ],
    "System": [
        Panel("system", "Processor (%)", ["system/cpu"]),
        Panel("system", "Memory of the process (MB)", ["system/proc.memory.rssMB"]),
        Panel("system", "Memory of the machine (%)", ["system/memory_percent"]),
        Panel("family", "GPU", ["system/gpu."]),
    ],
}

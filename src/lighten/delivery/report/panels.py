"""The panels of the W&B workspace, which the report draws too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lighten.delivery.report.wording import CLASSES, label_of, noun_of


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


SIZE, TIME = (f"delivery/compressed/{name}" for name in ("bytes", "latency_batch_1_ms"))


def sections_of(task: Mapping[str, Any]) -> dict[str, list[Panel]]:
    """Return the panels by section.

    Args:
        task: what ``scores.json`` says of it: its metrics are drawn.
    """
    leads = task["metric"]
    name, quality = noun_of(task, leads), f"delivery/compressed/{leads}"
    metrics = [_both(metric, label_of(task, metric)) for metric in task["metrics"]]
    classes = [_both("ece", "Calibration error"), Panel("table", "Confusion on the test split", ["confusion"])]
    classes = classes if task.get("exhibit") == "confusion" else []
    gaps = [f"gap/{metric}" for metric in (*task["metrics"], "loss")]
    shares = [f"gap/{key}" for key, meaning in task["alike"].items() if meaning["format"] == "percent"]
    others = [key for key in task["alike"] if f"gap/{key}" not in shares]
    return {
        "Student against teacher": [
            *metrics,
            _both("loss", "Loss on validation"),
            _both("worst_class", "The worst part"),
            *classes[:1],
            Panel("lines", "Gap: teacher minus student", gaps),
            Panel(
                "lines", f"Share of the teacher's {name} kept, and how alike both answer", ["gap/retention", *shares]
            ),
            *(Panel("lines", label_of(task, key), [f"gap/{key}"]) for key in others),
            Panel("lines", "Training loss", ["train/loss"]),
            Panel("family", "Shares of the losses", ["distil/share/"]),
            Panel("lines", "Learning rate", ["lr"]),
            *classes[1:],
        ],
        "Compression": [
            Panel("lines", "Pruned: asked, channels, MACs", ["prune/amount", "prune/sparsity", "prune/macs"]),
            Panel("lines", "Cut while it trains: channels there", ["prune/width"]),
            Panel("lines", "Milliseconds a step", ["system/step_ms"]),
            Panel("lines", "Samples a second", ["system/samples_per_second"]),
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
            Panel("scatter", f"{label_of(task, leads)} over bytes", [SIZE, quality, TIME], log=True),
            Panel("scatter", f"{label_of(task, leads)} over latency at batch 1 (ms)", [TIME, quality, SIZE], log=True),
            Panel("axes", f"Bytes, latency, {name}", [SIZE, TIME, quality]),
            _each("latency_batch_1_ms", "Latency at batch 1 (ms)"),
            _each("latency_batch_32_ms", "Latency at batch 32 (ms)"),
            Panel("bars", "Times faster", ["delivery/speedup_batch_1", "delivery/speedup_batch_32"]),
            Panel("bars", f"Share of the teacher's {name} kept", ["delivery/retention"]),
        ],
        "System": [
            Panel("system", "Processor (%)", ["system/cpu"]),
            Panel("system", "Memory of the process (MB)", ["system/proc.memory.rssMB"]),
            Panel("system", "Memory of the machine (%)", ["system/memory_percent"]),
            Panel("family", "GPU", ["system/gpu."]),
        ],
    }


def search_sections(task: Mapping[str, Any]) -> dict[str, list[Panel]]:
    """Return the panels of searches, of which each trial is a run, by section.

    Args:
        task: what ``scores.json`` says of it.
    """
    drop, time, size = "trial/drop", "trial/latency_ms", "trial/bytes"
    leads = task["metric"]
    return {
        "Frontier": [
            Panel("scatter", "Drop over latency (ms)", [time, drop, size], log=True),
            Panel("scatter", "Drop over bytes", [size, drop, time], log=True),
            Panel("axes", "Settings and what came of them", ["setting/amount", "setting/epochs", size, time, drop]),
            Panel("bars", "Drop", [drop]),
            Panel("bars", "Latency (ms)", [time]),
            Panel("bars", "Bytes", [size]),
        ],
        "Predicted against measured": [
            Panel("scatter", "Drop", ["predicted/drop", drop, "setting/amount"]),
            Panel("scatter", "Latency (ms)", ["predicted/latency_ms", time, "setting/amount"]),
        ],
        "Along the fits": [
            Panel("lines", f"{label_of(task, leads)} on the guide split", [f"student/{leads}"]),
            Panel("lines", "Training loss", ["train/loss"]),
            Panel("lines", "Pruned: asked, channels, MACs", ["prune/amount", "prune/sparsity", "prune/macs"]),
        ],
        "Time": [Panel("bars", "Seconds", ["trial/seconds"]), Panel("bars", "Epochs", ["trial/epochs"])],
    }


SECTIONS = sections_of(CLASSES)
"""The panels of runs that answer with classes."""

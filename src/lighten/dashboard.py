"""A W&B workspace as code: student against teacher, compression, speed, system; for all runs of a project."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lighten.errors import UserError
from lighten.training.wandb_run import STEP

NAME = "lighten"
MOST_RUNS = 30
"""Shown at once."""


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


def workspace(entity: str, project: str) -> Any:
    """Return the workspace, a ``wandb_workspaces.workspaces.Workspace``; nothing is sent.

    Raises:
        UserError: if ``wandb-workspaces`` is not installed.
    """
    ws, wr = _packages()
    sections = [
        ws.Section(
            name=name,
            is_open=name != "System",
            panels=[_made(wr, panel, f"{number}-{place}") for place, panel in enumerate(panels)],
        )
        for number, (name, panels) in enumerate(SECTIONS.items())
    ]
    settings = ws.WorkspaceSettings(x_axis=STEP, max_runs=MOST_RUNS)
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections, settings=settings)


def as_json(made: Any) -> str:
    """Return what W&B is sent for a workspace, indented."""
    model = made._to_model()
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    view = {"entity": model.entity, "project": model.project, "name": model.display_name, "spec": spec}
    return json.dumps(view, indent=2, ensure_ascii=False)


def publish(made: Any) -> str:
    """Save a workspace as a new view of its project; return its address.

    Raises:
        UserError: without a key, the right to write there, or a network.
    """
    try:
        made.save_as_new_view()
        return str(made.url)
    except Exception as error:  # of W&B, its transport, or what its server answers
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"{made.entity}/{made.project}: W&B takes no dashboard ({reason:.200}); log in with `wandb login`, "
            "see that this project is yours to change, or print what would be sent with --dry-run"
        ) from error


def _packages() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its validators are written in pydantic's old way
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces; install it: pip install 'lighten[dashboard]'") from error
    return ws, wr


def _made(wr: Any, panel: Panel, place: str) -> Any:
    metrics = list(panel.metrics)
    finals = [wr.SummaryMetric(name) for name in metrics]
    log = panel.log or None
    if panel.kind == "lines":
        made = wr.LinePlot(title=panel.title, x=STEP, y=metrics)
    elif panel.kind == "family":
        x = "RelativeTime(Process)" if metrics[0].startswith("system/") else STEP
        made = wr.LinePlot(title=panel.title, x=x, metric_regex="^" + metrics[0].replace(".", r"\.") + ".*")
    elif panel.kind == "system":
        made = wr.LinePlot(title=panel.title, x="RelativeTime(Process)", y=metrics)
    elif panel.kind == "bars":
        made = wr.BarPlot(title=panel.title, metrics=finals)
    elif panel.kind == "scatter":
        x, y, z = finals
        made = wr.ScatterPlot(title=panel.title, x=x, y=y, z=z, log_x=log, running_ymax=True)
    elif panel.kind == "axes":
        made = wr.ParallelCoordinatesPlot(
            title=panel.title, columns=[wr.ParallelCoordinatesPlotColumn(metric=name) for name in finals]
        )
    else:
        made = wr.WeavePanelSummaryTable(table_name=metrics[0])
    made._id = f"{NAME}-{place}"  # by itself it would be drawn by lot
    return made

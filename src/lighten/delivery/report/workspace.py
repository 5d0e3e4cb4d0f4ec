"""A W&B workspace as code: student against teacher, compression, speed, system; for all runs of a project."""

import json
import warnings
from typing import Any

from lighten.delivery.measure.scores import describe_task
from lighten.delivery.report.panels import Panel, search_sections, sections_of
from lighten.errors import UserError
from lighten.tasks import task_of
from lighten.training.wandb_run import STEP

NAME, SEARCH = "lighten", "lighten searches"
MAX_RUNS = 30
"""Shown at once."""


def workspace(entity: str, project: str, *, task: str = "classification", search: bool = False) -> Any:
    """Return the workspace, a ``wandb_workspaces.workspaces.Workspace``; nothing is sent.

    Args:
        entity: user or team.
        project: of theirs.
        task: what the runs answer; its metrics are drawn.
        search: of the trials of searches, a run each, instead.

    Raises:
        UserError: if ``wandb-workspaces`` is not installed, or the task is unknown.
    """
    ws, wr = _packages()
    told = describe_task(task_of(task))
    sections = [
        ws.Section(
            name=name,
            is_open=name != "System",
            panels=[_made(wr, panel, f"{number}-{place}") for place, panel in enumerate(panels)],
        )
        for number, (name, panels) in enumerate((search_sections if search else sections_of)(told).items())
    ]
    settings = ws.WorkspaceSettings(x_axis=STEP, max_runs=MAX_RUNS)
    name = SEARCH if search else NAME
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


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

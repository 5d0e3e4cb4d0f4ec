"""Comparison of several runs, as a table for the terminal and as one HTML file."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.delivery.folders.run import open_run, write_text
from lighten.delivery.measure.scores import Scores, read_scores
from lighten.delivery.report.columns import Column, columns_of
from lighten.delivery.report.figures import FORMATS, Figure, figure, milliseconds
from lighten.delivery.report.plots import within_share
from lighten.delivery.report.svg import Frame, circle, shorten, spread, text
from lighten.delivery.report.templates import environment
from lighten.delivery.report.wording import Told, format_of, label_of, noun_of
from lighten.errors import UserError, did_you_mean
from lighten.utils.safe_yaml import flatten, read_plain

if TYPE_CHECKING:
    from rich.table import Table

PAGE = "compare.html"


_SETTINGS = 6
"""The most settings that a row of the page names."""
_LABELLED = 12
"""With more runs than this the plots' discs have names only when pointed at."""


@dataclass(frozen=True)
class Compared:
    """A run among others.

    Attributes:
        name: the end of its path, as far as it takes to tell it from the others.
        folder: where it is.
        differs: settings that not all runs of its recipe share, ``key=value``.
        figures: by the names of :func:`columns_of`.
        front: whether no other run on the same data is as good in the leading metric, size and latency of single
            samples, and better in one.
        data: what it was measured on, by name; runs of other data say nothing about each other.
        machine: what it was measured with.
        task: what ``scores.json`` says of what is answered.
    """

    name: str
    folder: Path
    differs: tuple[str, ...]
    figures: Mapping[str, Figure]
    front: bool
    data: str
    machine: str
    task: Told

    def as_json(self) -> dict[str, Any]:
        """Return plain values, ``differs`` as a list."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "differs": list(self.differs),
            "pareto": self.front,
            "data": self.data,
            "machine": self.machine,
            **{name: figure.value for name, figure in self.figures.items()},
        }


def compare_runs(runs: Sequence[str | Path], *, sort: str | None = None) -> list[Compared]:
    """Return the runs, best first by the column ``sort``.

    Args:
        runs: run folders, at least two.
        sort: a name of :func:`columns_of` their task, or ``name``; by default the metric that leads.

    Raises:
        UserError: for fewer than two runs, the same one twice, one without scores, runs of several tasks, or an unknown
            column.
    """
    folders = [open_run(run) for run in runs]
    if len({folder.resolve() for folder in folders}) != len(folders) or len(folders) < 2:
        raise UserError(f"{len(folders)} run folders, expected two or more, each once; give runs/RECIPE/ID of each")
    scores = [read_scores(folder) for folder in folders]
    task = _task_of(folders, scores)
    columns, leads = columns_of(task), task["metric"]
    sort = sort or leads
    names = ["name", *(column.name for column in columns)]
    if sort not in names:
        raise UserError(f"sort={sort!r}; {did_you_mean(sort, names)}")
    judged_by = (leads, "bytes", "latency")
    figures = [_figures(folder, one, columns) for folder, one in zip(folders, scores, strict=True)]
    judged = [
        (_data(one)[1], tuple(_loss(column, row[column.name]) for column in columns if column.name in judged_by))
        for one, row in zip(scores, figures, strict=True)
    ]
    found = [
        Compared(
            name,
            folder,
            differs,
            row,
            not any(_dominates(other, mine) for other in judged),
            _data(one)[0],
            _machine(one),
            task,
        )
        for name, folder, differs, row, mine, one in zip(
            _names(folders), folders, _differences(folders), figures, judged, scores, strict=True
        )
    ]
    if sort == "name":
        return sorted(found, key=lambda run: run.name)
    column = next(column for column in columns if column.name == sort)
    return sorted(found, key=lambda run: (_loss(column, run.figures[sort]), run.name))


def by_task(runs: Sequence[Path]) -> list[list[Path]]:
    """Return the run folders that answer the same together, without those that are alone."""
    found: dict[str, list[Path]] = {}
    for run in runs:
        found.setdefault(read_scores(run)["task"]["name"], []).append(run)
    return [folders for folders in found.values() if len(folders) > 1]


def write_comparison(runs: Sequence[Compared], path: str | Path | None = None, *, sort: str | None = None) -> Path:
    """Write the comparison as one HTML file and return its path.

    Args:
        runs: what :func:`compare_runs` has found.
        path: where to; by default ``compare.html`` in the folder that holds all runs.
        sort: the column that they are sorted by.

    Raises:
        DiskError: if it cannot be written.
    """
    common = os.path.commonpath([run.folder.resolve().parent for run in runs])
    return write_text(Path(path) if path is not None else Path(common) / PAGE, render(runs, sort=sort))


def render(runs: Sequence[Compared], *, sort: str | None = None) -> str:
    """Return the page's HTML."""
    from markupsafe import Markup

    jinja = environment(autoescape=True)
    jinja.filters["svg"] = Markup
    machines, task = sorted({run.machine for run in runs}), runs[0].task
    leads = task["metric"]
    noun = noun_of(task, leads)
    worst = min(runs, key=lambda run: run.figures["kept"].value)
    return jinja.get_template("compare.html").render(
        runs=runs,
        columns=columns_of(task),
        sort=sort or leads,
        noun=noun,
        lower=task["lower_is_better"],
        front=[run for run in runs if run.front],
        best=_bests(runs),
        worst=worst,
        machines=machines,
        datasets=sorted({run.data for run in runs}),
        most=_SETTINGS,
        plots=[
            (
                f"Latency and {noun}",
                _plot(runs, "latency", milliseconds, "latency of one sample, logarithmic"),
            ),
            (
                f"Size and {noun}",
                _plot(runs, "bytes", FORMATS["bytes"], "bytes of the file, logarithmic"),
            ),
        ],
    )


def comparison_table(runs: Sequence[Compared]) -> "Table":
    """Return what ``rich`` prints: a row a run; those of the Pareto front are marked."""
    from rich.table import Table

    task = runs[0].task
    leads, columns = task["metric"], columns_of(task)
    shown = (leads, "kept", "bytes", "smaller", "latency", "faster", "faster_32")
    caption = f"* on the Pareto front of {noun_of(task, leads)}, size and latency"
    table = Table(header_style="bold", pad_edge=False, caption=caption)
    table.add_column("Run", overflow="fold")
    for column in columns:
        if column.name in shown:
            table.add_column(column.heading, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            f"{'*' if run.front else ' '} {run.name}", *(run.figures[c.name].text for c in columns if c.name in shown)
        )
    return table


def comparison_json(runs: Sequence[Compared]) -> str:
    """Return the runs as a JSON array, for scripts."""
    return json.dumps([run.as_json() for run in runs], indent=2, ensure_ascii=False)


def summary(runs: Sequence[Compared]) -> str:
    """Return the comparison in a sentence."""
    front = [run.name for run in runs if run.front]
    worst = min(runs, key=lambda run: run.figures["kept"].value)
    return (
        f"{len(runs)} runs, {len(front)} of them on the Pareto front: {', '.join(front)}; "
        f"least is kept by {worst.name}: {worst.figures['kept'].text}"
    )


def _task_of(folders: Sequence[Path], scores: Sequence[Scores]) -> Told:
    """Return the task of all runs.

    Raises:
        UserError: if they answer different things.
    """
    for folder, one in zip(folders, scores, strict=True):
        if one["task"]["name"] != scores[0]["task"]["name"]:
            raise UserError(
                f"{folder} is of task {one['task']['name']}, {folders[0]} of {scores[0]['task']['name']}; compare runs "
                "that answer the same"
            )
    return scores[0]["task"]


def _figures(folder: Path, scores: Scores, columns: Sequence[Column]) -> dict[str, Figure]:
    try:
        return {column.name: figure(scores, column.key) for column in columns}
    except (KeyError, TypeError):
        raise UserError(f"{folder}: scores.json lacks figures; make it again with `lighten measure {folder}`") from None


def _loss(column: Column, value: Figure) -> float:
    return -value.value if column.more_is_better else value.value


def _dominates(other: tuple[str, tuple[float, ...]], mine: tuple[str, tuple[float, ...]]) -> bool:
    same_data = other[0] == mine[0]
    return same_data and other != mine and all(theirs <= own for theirs, own in zip(other[1], mine[1], strict=True))


def _bests(runs: Sequence[Compared]) -> dict[str, float]:
    return {
        column.name: min((run.figures[column.name] for run in runs), key=lambda f, c=column: _loss(c, f)).value  # type: ignore[misc]
        for column in columns_of(runs[0].task)
    }


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart, two parts at least: recipe and id."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(2, max(map(len, parts))):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder.resolve()) for folder in folders]


def _differences(folders: Sequence[Path]) -> list[tuple[str, ...]]:
    recipes = [_settings(folder / "recipe.yaml") for folder in folders]
    found = []
    for recipe in recipes:
        alike = [other for other in recipes if other.get("name") == recipe.get("name")]
        ours = [key for key in recipe if len({repr(other.get(key)) for other in alike}) > 1]
        found.append(tuple(f"{key}={recipe[key]}" for key in ours if key not in ("id", "runs")))
    return found


def _settings(path: Path) -> dict[str, Any]:
    return dict(flatten(read_plain(path))) if path.exists() else {}


def _data(scores: Scores) -> tuple[str, str]:
    """Return name and fingerprint of the data that a run was measured on."""
    data = scores.get("provenance", {}).get("data", {})
    return str(data.get("name", "unknown data")), str(data.get("fingerprint", ""))


def _machine(scores: Scores) -> str:
    machine = scores.get("provenance", {}).get("machine", {})
    return f"{machine.get('processor', 'an unknown processor')}, {machine.get('cores', '?')} cores"


def _plot(runs: Sequence[Compared], along: str, show: Callable[[float], str], label: str) -> str:
    """Return the plot of one price against the leading metric, with the front of these two drawn through."""
    task, leads = runs[0].task, runs[0].task["metric"]
    sign = -1.0 if task["lower_is_better"] else 1.0
    points = [(run.figures[along].value, run.figures[leads].value) for run in runs]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    poor, good = min(y for _, y in points), max(y for _, y in points)
    pad = max(good - poor, 0.004 * max(1.0, abs(good))) * 0.35
    frame = Frame(
        (low / 1.3, high * 1.3), within_share((poor - pad, good + pad), task, leads), log_x=True,
        margin=(56.0, 26.0, 110.0, 36.0),
    )  # fmt: skip
    frame.y_axis(format_of(task, leads, 1))
    frame.x_axis([low, high] if high > low else [low], show, label)
    best, front = -math.inf, []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if sign * y > best:
            best = sign * y
            front.append((x, y))
    frame.path(front, "guide")
    heights = spread([frame.at(*point)[1] for point in points], 15, highest=frame.box[3])
    for run, point, height in zip(runs, points, heights, strict=True):
        x, y = frame.at(*point)
        css = "compressed" if point in front else "student"
        caption = f"{run.name}: {run.figures[leads].text}, {run.figures[along].text}"
        frame.add(circle((x, y), 5.5, f"disc {css}", caption))
        if len(runs) <= _LABELLED:
            frame.add(text(x + 10, height + 4, shorten(run.name, 16), "tick"))
    caption = "; ".join(f"{run.name} {run.figures[leads].text} at {run.figures[along].text}" for run in runs)
    return frame.drawing(f"{label_of(task, leads)} against {label}", caption)

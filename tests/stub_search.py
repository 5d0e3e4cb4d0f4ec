"""A search that is over at once, so that its doors are tested without fits: it saves the model that it got."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from search_run import write_search

from lighten import export_onnx, save
from lighten.delivery.folders.about import about_data


@dataclass
class Point:
    trial: int
    folder: str
    metric: float
    drop: float
    figures: dict[str, float]


@dataclass
class Found:
    met: bool
    folder: Path
    path: Path
    reasons: list[str]
    frontier: list[Point] = field(default_factory=list)

    def __str__(self) -> str:
        return "the table"


@dataclass
class StubSearch:
    """Stands for ``lighten.search.compress.compress``; remembers what it was called with."""

    met: bool = True
    exports: bool = False
    stops_with: BaseException | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, model: Any, datamodule: Any, *, folder: Path, on_progress: Any, **given: Any) -> Found:
        self.calls.append({"model": model, "data": datamodule, "folder": folder, **given})
        write_search(folder, "met" if self.met else "not met")
        on_progress("trial 0: a first result")
        if self.stops_with is not None:
            raise self.stops_with
        best = folder / "best"
        save(model, best / "student", **about_data(datamodule))
        save(model, folder / "original", **about_data(datamodule))
        for file in (best / "student.onnx", folder / "original.onnx"):
            if self.exports:
                export_onnx(model, torch.zeros(2, *datamodule.input_shape), file)
            else:
                file.write_bytes(b"graph")
        reasons = ["trial 4 is chosen", "met" if self.met else "not met; the nearest is trial 4: drop 1.2 %"]
        point = Point(4, "trials/4", 0.898, 0.0085, {"bytes": 118_240, "latency_ms": 0.075})
        return Found(self.met, best / "student", best / "student.onnx", reasons, [point])

"""Ranks that share the pictures of a detector come to the figures of one process."""

import json
from pathlib import Path

import pytest
import torch
from processes import run_fits
from toy_boxes import rectangles

from lighten.tasks import build_task
from lighten.tasks.scorer import scorer_of

SCRIPT = Path(__file__).with_name("boxes_fit.py")


@pytest.mark.slow
def test_map_is_that_of_all_pictures_on_every_rank(tmp_path) -> None:
    run_fits(SCRIPT, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    task = build_task("detection", matches=4, nms=0.5)
    _, labels = rectangles(12)
    torch.manual_seed(0)
    answers = torch.cat([labels[:, :, 1:].repeat(1, 4, 1), torch.randn(12, 12, 2)], -1)
    scorer = scorer_of(task, 2, torch.device("cpu"))
    scorer.update(*task.rows(answers, labels))
    alone = {name: float(value) for name, value in scorer.compute().items()}
    assert 0.1 < alone["map"] < 1
    assert first["some"] == first["none"] == pytest.approx(alone, abs=1e-9)
    assert set(first["metrics"]) == {"student/map", "student/map_50", "student/map_75"}

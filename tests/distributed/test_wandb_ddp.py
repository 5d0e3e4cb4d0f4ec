"""W&B over two processes: rank zero alone logs, each step once, also where a run was stopped and went on."""

import json
from pathlib import Path

import pytest
from processes import run_fits

from lighten.training.progress import CLOCKS
from lighten.training.record import OWN_KEYS, read
from lighten.training.wandb_log import read_records, rows
from lighten.training.wandb_run import STEP

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("wandb_fit.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    run_fits(SCRIPT, folder, WANDB_MODE="offline", WANDB_SILENT="true")
    return folder / "recipe"


def sent(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [
        (row[STEP], {k: v for k, v in row.items() if k[0] != "_" and k not in (STEP, "epoch", *CLOCKS)})
        for row in rows(folder, f"recipe-{folder.name}")
    ]


def written(folder: Path) -> list[tuple[int, dict[str, float]]]:
    lines = read(folder / "history.jsonl")
    return [(line["step"] - 1, {k: v for k, v in line.items() if k not in (*OWN_KEYS, *CLOCKS)}) for line in lines]


def test_rank_zero_alone_sends_each_line_of_the_history_once(runs) -> None:
    (log,) = (runs / "whole").glob("wandb/offline-run-*/*.wandb")
    assert [r.WhichOneof("record_type") for r in read_records(log)].count("run") == 1
    assert sent(runs / "whole") == written(runs / "whole")
    assert [step for step, metrics in sent(runs / "whole") if "train/loss" in metrics] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert json.loads((runs / "whole" / "rank1.json").read_text()) == {"step": 16}


def test_a_run_that_one_rank_was_asked_to_stop_goes_on_as_one(runs) -> None:
    folder = runs / "parts"
    assert len(sorted(folder.glob("wandb/offline-run-*/*.wandb"))) == 2
    assert sent(folder) == written(folder)
    assert [(step, set(metrics)) for step, metrics in sent(folder)] == [
        (step, set(metrics)) for step, metrics in sent(runs / "whole")
    ]
    assert sent(folder) == sent(runs / "whole")

import json
import sys
from pathlib import Path

import pytest
import torch
from processes import run_fits
from sklearn.metrics import f1_score

from lighten.training.checkpoint import AtomicCheckpointIO, latest_good
from lighten.training.record import read

SCRIPT = Path(__file__).with_name("distillation_fit.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    run_fits(SCRIPT, folder)
    return folder


def seen_by_ranks(folder: Path) -> list[dict]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture
def plain(runs):
    return runs / "plain", seen_by_ranks(runs / "plain")


def test_the_teacher_is_in_no_bucket_and_no_broadcast(plain) -> None:
    _, ranks = plain
    for seen in ranks:
        assert seen["synced"] == 4 * 9 + 4 + 2 * 4 + 4 * 4 * 3 + 3
        assert seen["broadcast"] == [f"student.1.{n}" for n in ("num_batches_tracked", "running_mean", "running_var")]
        assert seen["teacher_inside"] is False
        assert seen["teacher_changed"] is False


def test_ranks_end_with_equal_weights_and_equal_scores(plain) -> None:
    _, (first, second) = plain
    assert first["weights"] == second["weights"]
    shared = [name for name in first["metrics"] if name.startswith(("student/", "teacher/", "gap/"))]
    assert len(shared) == 16
    assert {n: first["metrics"][n] for n in shared} == {n: second["metrics"][n] for n in shared}


def test_scores_are_those_of_all_samples(plain) -> None:
    """Recomputed on one process from the checkpoint, over the whole set."""
    folder, (first, _) = plain
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import distillation_fit as fit
    finally:
        sys.path.remove(str(SCRIPT.parent))
    state = AtomicCheckpointIO().load_checkpoint(latest_good(folder / "checkpoints"))["state_dict"]
    student = fit.Net(4, seed=0)
    student.load_state_dict({name.removeprefix("student."): value for name, value in state.items()})
    (inputs, labels) = next(iter(fit.sharded(0, 1, fit.SAMPLES)))
    with torch.no_grad():
        logits = student.eval()(inputs)
    metrics = first["metrics"]
    assert metrics["student/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["student/macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    assert metrics["student/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_one_rank_writes_the_history_and_the_checkpoints(plain) -> None:
    folder, _ = plain
    assert [line["step"] for line in read(folder / "history.jsonl")] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert len(list((folder / "checkpoints").glob("last*.ckpt"))) == 2


def test_a_loss_that_is_infinite_on_one_rank_stops_both_in_the_same_step(runs) -> None:
    first, second = seen_by_ranks(runs / "poison")
    assert first["told"] == second["told"]
    assert "the loss is inf on rank 1 at step 1" in first["told"]
    assert not list((runs / "poison").rglob("*.ckpt"))

"""FSDP2 over two processes: quantization gives the bits that DDP gives; what cannot be is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from processes import run_fits

SCRIPT = Path(__file__).with_name("sharded_fit.py")


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, Any]:
    """Return what both ranks saw, by fit and rank."""
    folder = tmp_path_factory.mktemp("sharded")
    run_fits(SCRIPT, folder)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("ranges", ["moving_average", "lsq"])
def test_shards_train_through_int8_as_whole_weights_do(ended, ranges) -> None:
    whole, sharded = ([ended[f"{kind}-{ranges}-{rank}"] for rank in (0, 1)] for kind in ("ddp", "fsdp2"))
    assert [found["whole"] for found in (*whole, *sharded)] == [20, 20, 0, 0]
    for name in ("stage", "places", "losses", "ranges", "statistics"):
        assert sharded[0][name] == sharded[1][name] == whole[0][name], name
    assert sharded[0]["stage"] == 2
    assert [found["logits"] for found in sharded] == [found["logits"] for found in whole]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_one_process_takes_the_checkpoint_up_and_exports_it(ended, kind) -> None:
    found = ended[f"{kind}-moving_average-0"]
    assert found["loaded"] == found["logits"]
    assert found["exported"]


def test_a_student_without_weights_is_quantized_before_it_gets_them(ended) -> None:
    first, second = ended["meta-0"], ended["meta-1"]
    assert first == second
    assert first["places"] == ended["ddp-lsq-0"]["places"]
    low, high = first["ranges"]
    assert all(a <= 0 < b for a, b in zip(low, high, strict=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prune", "Prune needs whole weights on every device, ModelParallelStrategy shards them; use ddp"),
        ("parted", "quantize: 'norm' is folded into 'stem', and fully_shard has put it into a unit of its own, 'norm'"),
    ],
)
def test_what_cannot_be_sharded_is_refused_on_all_ranks_before_the_first_step(ended, name, words) -> None:
    for found in (ended[f"{name}-0"], ended[f"{name}-1"]):
        assert found["told"].startswith(words)
        assert "\n" not in found["told"]
        assert found["steps"] == 0

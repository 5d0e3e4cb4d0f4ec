import copy
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_model
from torch import nn

from lighten.errors import UserError
from lighten.training.reference import reference
from lighten.utils import files
from lighten.utils.fingerprint import fingerprint_of


class Fit:
    """Counts, and leaves weights that no constructor makes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: nn.Module) -> None:
        self.count += 1
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(7.0 + self.count)
        model[1].running_mean.fill_(3.0)
        model.train()


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_trained_once_and_then_found(tmp_path) -> None:
    fit = Fit()
    first = reference(tmp_path, build, fit, "abc")
    second = reference(tmp_path, build, fit, "abc")
    assert fit.count == 1
    assert same(first, second)
    assert not first.training
    assert not second.training
    assert sorted(path.name for path in (tmp_path / "abc").iterdir()) == ["manifest.json", "model.safetensors"]
    assert not same(reference(tmp_path, build, fit, "abd"), first)
    assert fit.count == 2


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_shape(path) -> None:
    save_model(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), str(path))
    content = path.read_bytes()
    manifest = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [flip, other_shape, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_one_gives_one_warning_and_is_trained_anew(tmp_path, damage) -> None:
    fit = Fit()
    first = copy.deepcopy(reference(tmp_path, build, fit, "abc"))
    damage(tmp_path / "abc" / "model.safetensors")
    with pytest.warns(UserWarning, match="it is trained again") as caught:
        again = reference(tmp_path, build, fit, "abc")
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert fit.count == 2
    assert not same(first, again)
    assert same(again, reference(tmp_path, build, fit, "abc"))


def test_a_fit_that_was_cut_short_is_not_taken(tmp_path) -> None:
    fit = Fit()
    reference(tmp_path, build, fit, "abc")
    (tmp_path / "abc" / "manifest.json").unlink()
    reference(tmp_path, build, fit, "abc")
    assert fit.count == 2


def test_the_fits_history_goes_with_it_and_the_rest_of_its_folder_goes(tmp_path) -> None:
    work = tmp_path / "abc.mine.fit"

    def fit(model: nn.Module) -> None:
        work.mkdir()
        (work / "history.jsonl").write_text("{}")
        (work / "checkpoint").touch()

    reference(tmp_path, build, fit, "abc", work=work)
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]
    assert (tmp_path / "abc" / "history.jsonl").read_text() == "{}"
    work.mkdir()  # as a kill just before it was removed leaves it
    reference(tmp_path, build, fit, "abc", work=work)
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def forked(work) -> int:
    """Run ``work`` in a process of its own; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("killed", ["training", "writing"])
def test_who_is_killed_leaves_no_half_of_a_reference_and_nothing_behind(tmp_path, killed) -> None:
    work = tmp_path / "abc.mine.fit"

    def die(*_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fit(model: nn.Module) -> None:
        work.mkdir()
        if killed == "training":
            die()
        files._sync = die

    assert ended(forked(lambda: reference(tmp_path, build, fit, "abc", work=work))) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [work.name]
    reference(tmp_path, build, Fit(), "abc", work=work)
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_two_runs_that_train_the_same_do_not_meet_and_end_with_the_same(tmp_path) -> None:
    home = tmp_path / "references"

    def run(name: str, other: str) -> None:
        work = home / f"abc.{name}.fit"

        def fit(model: nn.Module) -> None:
            work.mkdir(parents=True)
            (tmp_path / f"{name} has begun").touch()
            while not (tmp_path / f"{other} has begun").exists():
                time.sleep(0.001)
            with torch.no_grad():  # where devices are not deterministic, each ends with weights of its own
                for p in model.parameters():
                    p.fill_(float(name))

        model = reference(home, build, fit, "abc", work=work)
        (tmp_path / name).write_text(str(model[0].weight[0, 0].item()))

    runs = [forked(lambda names=names: run(*names)) for names in ("12", "21")]
    assert [ended(pid) for pid in runs] == [0, 0]
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()
    assert [path.name for path in home.iterdir()] == ["abc"]
    found = reference(home, build, Fit(), "abc")
    assert str(found[0].weight[0, 0].item()) == (tmp_path / "1").read_text()


def test_what_rank_zero_has_found_is_waited_for_and_what_it_has_not_is_trained(tmp_path, monkeypatch) -> None:
    fit = Fit()
    reference(tmp_path, build, Fit(), "abc")
    (tmp_path / "abc").rename(tmp_path / "later")

    def appear(seconds: float) -> None:
        (tmp_path / "later").rename(tmp_path / "abc")

    monkeypatch.setattr(time, "sleep", appear)
    found = reference(tmp_path, build, fit, "abc", agree=lambda found: True)
    assert fit.count == 0
    assert found[0].weight[0, 0].item() == 8.0
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    reference(tmp_path, build, fit, "abc", agree=lambda found: False)
    assert fit.count == 1
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="rank zero can load it, this process cannot"):
        reference(tmp_path, build, fit, "abd", agree=lambda found: True)


ASK = """
import os, sys
import lightning as L
from lighten.training.fit import leave_processes
from lighten.training.peers import failures_shared
from lighten.training.reference import agreed
trainer = L.Trainer(devices=2, accelerator="cpu", strategy="ddp", logger=False, enable_checkpointing=False,
                    default_root_dir=sys.argv[1])
first, second = agreed(os.environ["LOCAL_RANK"] == "0", trainer), agreed(os.environ["LOCAL_RANK"] == "1", trainer)
leave_processes()
sys.exit(0 if (first, second) == (True, False) else 3)
"""


def two_ranks(script, *words) -> list[tuple[int, str]]:
    """Run a script as two ranks, started from outside; return the exit codes and what was written to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, words)], env={**common, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


def test_all_ranks_get_rank_zeros_answer(tmp_path) -> None:
    ended = two_ranks(ASK, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert not list(tmp_path.iterdir())


DIE = """
import os, signal, sys
import lightning as L
from lighten.cli.train import exit_code
from lighten.training.peers import failures_shared
from lighten.training.reference import agreed
trainer = L.Trainer(devices=2, accelerator="cpu", strategy="ddp", logger=False, enable_checkpointing=False,
                    default_root_dir=sys.argv[1])
told, count = trainer.strategy.broadcast, [0]
def broadcast(value, src=0):
    count[0] += 1
    if count[0] == int(sys.argv[2]) and os.environ["LOCAL_RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return told(value, src)
trainer.strategy.broadcast = broadcast
def work():
    with failures_shared():
        agreed(True, trainer)
sys.exit(exit_code(work))
"""


@pytest.mark.parametrize(
    ("time", "says"),
    [
        pytest.param(1, "error: the fit's processes did not come together (", id="at once", marks=pytest.mark.slow),
        pytest.param(2, "error: rank 0 was killed (process ", id="as they ask"),
    ],
)
def test_who_waits_for_rank_zeros_answer_ends_when_that_is_killed(tmp_path, time, says) -> None:
    zero, one = two_ranks(DIE, tmp_path, time)
    assert zero[0] == -signal.SIGKILL
    assert one[0] == 1
    assert one[1].splitlines()[-1].startswith(says)
    assert "Traceback" not in one[1]


def test_fingerprints_depend_on_values_not_on_order() -> None:
    settings = {"lr": 0.1, "names": ["a", "b"]}
    first = fingerprint_of(model={"name": "x"}, settings=settings, seed=0)
    assert first == fingerprint_of(seed=0, settings=dict(reversed(settings.items())), model={"name": "x"})
    assert first != fingerprint_of(model={"name": "x"}, settings=settings, seed=1)
    assert first != fingerprint_of(model={"name": "x"}, settings={**settings, "names": ["b", "a"]}, seed=0)
    with pytest.raises(UserError, match="plain Python"):
        fingerprint_of(model=build())

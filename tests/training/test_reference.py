import copy
import hashlib
import json
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_model
from torch import nn

from lighten.errors import UserError
from lighten.training.reference import fingerprint_of, reference


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
    with pytest.warns(UserWarning, match="it is trained anew") as caught:
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


@pytest.mark.parametrize("killed", ["training", "writing"])
def test_who_is_killed_leaves_no_half_of_a_reference_and_nothing_behind(tmp_path, killed) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
from torch import nn
from lighten.training import files, reference as r
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def fit(model):
    Path({str(tmp_path)!r}, "abc.mine.fit").mkdir()
    {"die()" if killed == "training" else "files._sync = die"}
r.reference({str(tmp_path)!r}, lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), fit, "abc",
            work=Path({str(tmp_path)!r}, "abc.mine.fit"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    work = tmp_path / "abc.mine.fit"
    assert [path.name for path in tmp_path.iterdir()] == [work.name]
    reference(tmp_path, build, Fit(), "abc", work=work)
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


RACE = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from lighten.training.reference import reference
home, name, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
work = home / f"abc.{name}.fit"
def fit(model):
    work.mkdir(parents=True)
    (work / "begun").touch()
    while not any((home / f"abc.{other}.fit" / mark).exists() for mark in ("begun", "done")):
        time.sleep(0.01)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float(name))  # runs on devices that are not deterministic end with weights of their own
model = reference(home, lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), fit, "abc", work=work)
print(model[0].weight[0, 0].item())
"""


def test_two_runs_that_train_the_same_do_not_meet_and_end_with_the_same(tmp_path) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", RACE, tmp_path, *names], stdout=subprocess.PIPE, text=True)
        for names in ("12", "21")
    ]
    out = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert out[0] == out[1]
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]
    found = reference(tmp_path, build, Fit(), "abc")
    assert f"{found[0].weight[0, 0].item()}\n" == out[0]


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


def test_fingerprints_depend_on_values_not_on_order() -> None:
    settings = {"lr": 0.1, "names": ["a", "b"]}
    first = fingerprint_of(model={"name": "x"}, settings=settings, seed=0)
    assert first == fingerprint_of(seed=0, settings=dict(reversed(settings.items())), model={"name": "x"})
    assert first != fingerprint_of(model={"name": "x"}, settings=settings, seed=1)
    assert first != fingerprint_of(model={"name": "x"}, settings={**settings, "names": ["b", "a"]}, seed=0)
    with pytest.raises(UserError, match="plain Python"):
        fingerprint_of(model=build())

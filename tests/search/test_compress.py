"""compress(): one small search, read back by what did not write it; and what is refused."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from search_nets import Blobs, Net, trained

import lighten
from lighten import UserError, compress, load
from lighten.pruning.planner import plan_pruning
from lighten.quantization.post_training import quantize_post_training
from lighten.search.storage import Storage
from lighten.training.signals import Preempted


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return trained(Net(), Blobs())


@pytest.fixture(scope="module")
def searched(net, tmp_path_factory):
    before, told = copy.deepcopy(net.state_dict()), []
    folder = tmp_path_factory.mktemp("search")
    result = compress(net, Blobs(), max_drop=0.2, budget="6 epochs", folder=folder, on_progress=told.append)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return result, folder, told


def state_of(folder):
    return json.loads((folder / "search.json").read_text())


def accuracy(file, loader):
    """Of a file in onnxruntime, by NumPy alone."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    right = [np.argmax(session.run(None, {"input": x.numpy()})[0], -1) == y.numpy() for x, y in loader]
    return float(np.concatenate(right).mean())


def test_first_trial_is_int8_after_training_and_later_ones_are_pruned_and_trained_through_int8(searched, net):
    _, folder, _ = searched
    rows = state_of(folder)["trials"]
    first, *others = rows
    assert first["setting"]["quantize"] == "static"
    assert first["epochs"] == 0
    assert first["setting"]["amount"] == 0
    assert others
    assert all(row["setting"]["quantize"] == "qat" and row["setting"]["amount"] > 0 for row in others)
    assert sum(row["epochs"] for row in others) <= 6
    done = [row for row in others if row["state"] == "complete"]
    assert all(row["measured"]["macs"] < first["measured"]["macs"] for row in done)
    strongest = max(done, key=lambda row: row["setting"]["amount"])
    small = load(folder / strongest["folder"] / "student", model=Net())
    assert small.first.out_channels + small.second.out_channels < net.first.out_channels + net.second.out_channels


def test_figures_are_those_of_the_files(searched):
    _, folder, _ = searched
    state = state_of(folder)
    for row in state["trials"]:
        file = folder / row["folder"] / "student.onnx"
        assert row["measured"]["bytes"] == file.stat().st_size
        graph = {i.name for i in onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_inputs()}
        assert graph == {"input"}
    samples = torch.utils.data.ConcatDataset([Blobs().val_dataloader().dataset])
    assert state["splits"] == {"train": 240, "guide": 40, "select": 120, "confirm": 200}
    assert len(samples) == 160


def test_confirmation_is_on_the_test_part(searched):
    result, folder, _ = searched
    found = state_of(folder)["confirmation"]
    loader = Blobs().test_dataloader()
    original, small = accuracy(folder / "original.onnx", loader), accuracy(result.path, loader)
    assert found["samples"] == 200
    assert found["drop"] == pytest.approx(original - small, abs=1e-9)
    assert found["bound"] >= found["drop"]
    assert result.scores["models"]["compressed"]["accuracy"] == pytest.approx(small)


def test_result_is_the_chosen_trial(searched):
    result, folder, _ = searched
    state = state_of(folder)
    assert result.met
    assert state["state"] == "met"
    chosen = folder / state["trials"][state["chosen"]]["folder"]
    assert result.path.read_bytes() == (chosen / "student.onnx").read_bytes()
    x = next(iter(Blobs().test_dataloader()))[0]
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        own = result.model(x).numpy()
    assert np.abs(own - session.run(None, {"input": x.numpy()})[0]).max() < 0.1 * np.abs(own).max()
    assert str(result).count("trial") >= 2
    assert state["chosen"] in state["frontier"]


def test_every_trial_is_in_optunas_storage(searched):
    _, folder, _ = searched
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.load_study(study_name="compress", storage=storage)
    rows = state_of(folder)["trials"]
    assert [t.user_attrs["amount"] for t in study.trials] == [row["setting"]["amount"] for row in rows]
    assert [t.value for t in study.trials] == [row["measured"]["drop"] for row in rows]
    assert any(t.intermediate_values for t in study.trials[1:])


def test_a_search_that_is_done_is_not_done_again(searched, net):
    _, folder, _ = searched
    begun, told = time.monotonic(), []
    again = compress(net, Blobs(), max_drop=0.2, budget="6 epochs", folder=folder, on_progress=told.append)
    assert time.monotonic() - begun < 5
    assert len(told) == 1
    assert again.path == searched[0].path


def test_another_search_in_the_same_folder_is_refused(searched, net):
    with pytest.raises(UserError, match="holds another search, with needs"):
        compress(net, Blobs(), max_drop=0.1, budget="6 epochs", folder=searched[1])


def test_what_is_asked_too_much_names_the_nearest(net, tmp_path):
    result = compress(net, Blobs(), max_drop=0.0, target={"macs": "30%"}, budget="1 epoch", folder=tmp_path)
    state = state_of(tmp_path)
    assert not result.met
    assert state["state"] == "not met"
    assert state["nearest"].startswith("not met; the nearest is trial ")
    assert state["help"]
    assert result.path.exists()


REFUSED = {
    "untrained": (lambda net: Net(), {}, "the model is not trained: its accuracy is"),
    "pruned": (
        lambda net: lighten.shrink(net, plan_pruning(net, torch.zeros(1, 1, 8, 8), 0.5)),
        {}, "compressed already",
    ),
    "quantized": (
        lambda net: quantize_post_training(net, [torch.zeros(4, 1, 8, 8)], ranges="min_max"),
        {}, "compressed already",
    ),
    "no time": (lambda net: net, {"budget": "1 s"}, "budget.*too small.*takes about"),
    "no epochs": (lambda net: net, {"budget": "0.1 epochs"}, "budget.*too small"),
    "no validation": (lambda net: net, {"data": Blobs(validation=False)}, "val_dataloader"),
    "no network": (lambda net: "net", {}, "expected a network"),
    "part of a network": (lambda net: net, {"module": "first"}, "names a part of a LightningModule"),
    "metric of a network": (lambda net: net, {"metric": ("val_acc", "max")}, "names what a LightningModule logs"),
    "no such setting": (lambda net: net, {"trainer": {"acelerator": "cpu"}}, "trainer='acelerator': did you mean 'acc"),
    "its own setting": (lambda net: net, {"trainer": {"max_epochs": 3}}, "'max_epochs', which a search decides itself"),
    "a file for a folder": (lambda net: net, {"folder": __file__}, "test_compress.py: is a file, expected a folder"),
    "no direction": (lambda net: net, {"metric": ("val_acc", "up")}, '"max"'),
    "met already": (lambda net: net, {"target": {"bytes": "1 GB"}}, "the original meets it already"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_line_before_anything_is_trained(case, net, tmp_path):
    model, given, message = REFUSED[case]
    given = dict(given)
    data = given.pop("data", Blobs())
    with pytest.raises(UserError, match=message) as error:
        compress(model(copy.deepcopy(net)), data, **{"folder": tmp_path / "run", **given})
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("trials/*/trial.json"))


def test_a_budget_that_nobody_gave_is_told(tmp_path):
    told = []
    with pytest.raises(UserError, match="not trained"):
        compress(Net(), Blobs(), folder=tmp_path / "run", on_progress=told.append)
    assert told == ["no budget is given: 20 epochs of training in all"]


SCRIPT = """
import sys, os, signal, time, torch
sys.path.insert(0, sys.argv[1])
from search_nets import Blobs, Net, trained
from lighten import compress
torch.set_num_threads(1)
torch.manual_seed(0)
net = trained(Net(), Blobs())
dies = sys.argv[3]
def told(line):
    print(line, flush=True)
    if line.startswith(dies):
        os.kill(os.getpid(), signal.SIGKILL)
if dies == "in a fit":
    from lighten.search.storage import Storage
    report = Storage.report
    def reported(self, number, value, step):
        report(self, number, value, step)
        if number == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    Storage.report = reported
result = compress(net, Blobs(), max_drop=0.2, budget="6 epochs", folder=sys.argv[2], on_progress=told)
"""


def run_script(tmp_path, folder, dies):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, str(script), str(Path(__file__).parents[1]), str(folder), dies]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)


def essence(folder):
    """All but what a clock says: two searches of a network that takes 0.03 ms differ in that anyway."""
    known = ("drop", "expected", "bound", "metric", "bytes", "macs", "parameters")
    rows = state_of(folder)["trials"]
    return [(r["setting"], r["state"], r["warm_from"], [r["measured"][name] for name in known]) for r in rows]


@pytest.mark.slow
def test_killed_searches_resume_and_end_as_the_one_that_was_not(searched, net, tmp_path):
    folder = tmp_path / "killed"
    for dies in ("in a fit", "trial 2: drop"):
        killed = run_script(tmp_path, folder, dies)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert state_of(folder)["state"] == "running"
    told = []
    compress(net, Blobs(), max_drop=0.2, budget="6 epochs", folder=folder, on_progress=told.append)
    assert not any(line.startswith(("trial 0:", "trial 1:")) for line in told)
    assert essence(folder) == essence(searched[1])
    study = optuna.load_study(study_name="compress", storage=JournalStorage(JournalFileBackend(f"{folder}/study.log")))
    assert len(study.trials) == len(state_of(folder)["trials"])


def test_two_runs_on_one_storage_are_refused(net, tmp_path):
    with Storage(tmp_path, {}), pytest.raises(UserError, match=f"process {os.getpid()} searches in this folder now"):
        compress(net, Blobs(), max_drop=0.2, folder=tmp_path)


def test_ctrl_c_and_sigterm_leave_the_best_so_far_and_signals_as_they_were(net, tmp_path, monkeypatch, request):
    report, sent, told = Storage.report, [signal.SIGINT, signal.SIGTERM], []
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest-xdist ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, given))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupted(self, number, value, step):
        report(self, number, value, step)
        if sent:
            os.kill(os.getpid(), sent.pop(0))

    def stopped_by(error):
        with pytest.raises(error):
            compress(net, Blobs(), max_drop=0.2, budget="3 epochs", folder=tmp_path, on_progress=told.append)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        state = state_of(tmp_path)
        assert state["state"] == "stopped"
        assert load(tmp_path / "best" / "student", model=Net())
        assert "goes on" in told[-1]
        return [row["state"] for row in state["trials"]]

    monkeypatch.setattr(Storage, "report", interrupted)
    assert stopped_by(KeyboardInterrupt) == ["complete", "running"]
    assert stopped_by(Preempted) == ["complete", "complete"]

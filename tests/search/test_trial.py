"""One trial: what its settings say is what its files are."""

import onnx
import pytest
import torch
from search_nets import Blobs, Net, trained

from lighten import export_onnx, load
from lighten.search.choose import Setting
from lighten.search.needs import Needs
from lighten.search.quality import ByTask
from lighten.search.splits import splits_of
from lighten.search.subject import subject_of
from lighten.search.trial import HopelessError, run_trial, warm_start
from lighten.tasks import task_of
from lighten.utils.compression import record_of


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    torch.manual_seed(0)
    net, data = trained(Net(16), Blobs(), epochs=4), Blobs()
    splits = splits_of(data)
    file = export_onnx(net, torch.zeros(2, 1, 8, 8), tmp_path_factory.mktemp("trial") / "net.onnx")
    task = task_of("classification")
    return {
        "subject": subject_of(net, data, splits), "quality": ByTask(task), "data": data, "splits": splits,
        "needs": Needs(max_drop=0.1), "original": file,
    }  # fmt: skip


def floats(path):
    """Names of layers whose weight a file holds in float."""
    graph = onnx.load(path).graph
    many = [i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) > 1]
    return {i.name for i in many if not i.name.endswith(".scale")}


def test_pruned_then_warm_started_and_pruned_further(given, tmp_path):
    first = Setting(amount=0.4, epochs=1.0, align=1, exclude=("head",))
    asked = []
    found = run_trial(first, **given, folder=tmp_path / "1", on_epoch=lambda *epoch: asked.append(epoch[0]))
    assert asked == [1]
    assert found["epochs"] == 1.0
    small = load(tmp_path / "1" / "student", model=Net(16))
    macs = 64 * 9 * small.first.out_channels * (1 + small.second.out_channels)
    assert macs / (64 * 9 * 16 * 17) == pytest.approx(0.6, abs=0.05)
    assert len(floats(tmp_path / "1" / "student.onnx")) == 1
    warm = warm_start(given["subject"], tmp_path / "1")
    assert record_of(warm).quantization is None
    assert warm.first.out_channels == small.first.out_channels
    again = Setting(amount=0.7, epochs=1.0, align=1)
    run_trial(again, **given, folder=tmp_path / "2", warm=warm)
    smaller = load(tmp_path / "2" / "student", model=Net(16))
    left = smaller.first.out_channels * (1 + smaller.second.out_channels) / (16 * 17)
    assert left == pytest.approx(0.3, abs=0.05)
    assert not floats(tmp_path / "2" / "student.onnx")


def test_what_the_look_has_measured_is_not_measured_again(given, tmp_path, monkeypatch):
    monkeypatch.setattr("lighten.pruning.widths.measure_sensitivity", None)
    curves = {"first": [(0.0, 0.0), (0.9, 0.0)], "second": [(0.0, 0.0), (0.9, 9.0)]}
    run_trial(Setting(amount=0.4, epochs=1.0, align=1), **given, curves=curves, folder=tmp_path)
    small = load(tmp_path / "student", model=Net(16))
    assert small.first.out_channels < small.second.out_channels


def test_a_finished_trial_is_only_measured_again(given, tmp_path):
    setting = Setting(quantize="static", scope="uniform", distil=False)
    run_trial(setting, **given, folder=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_trial(setting, **given, folder=tmp_path)
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"scores.json"}


def test_a_hopeless_trial_leaves_no_model(given, tmp_path):
    setting = Setting(amount=0.4, epochs=2.0)
    with pytest.raises(HopelessError, match="far off"):
        run_trial(setting, **given, folder=tmp_path, on_epoch=lambda *epoch: "far off")
    assert not (tmp_path / "student").exists()

import json
import platform
from importlib.metadata import version

import pytest
import torch

from lighten.cli import doctor
from lighten.cli.doctor import examine
from lighten.cli.main import main as cli
from lighten.delivery.runtimes import packages as extras


@pytest.fixture
def found():
    def by_name():
        return {(finding.part, finding.name): finding for finding in examine()}

    return by_name


def test_what_is_installed_is_told_with_its_version(found):
    findings = found()
    for name in ("torch", "lightning", "torchmetrics", "transformers", "datasets", "wandb", "onnxruntime"):
        assert findings["packages", name].state == "ok", findings["packages", name]
        assert findings["packages", name].found == version(name)
    assert findings["packages", "python"].found == platform.python_version()


def test_what_is_too_old_or_missing_is_a_warning_with_a_command(found, monkeypatch):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: {"onnx": "1.2", "rich": None}.get(name, real(name)))
    findings = found()
    assert findings["packages", "onnx"].state == "warning"
    assert findings["packages", "onnx"].found.startswith("1.2, expected >=1.23; pip install 'onnx>=1.23'")
    assert findings["packages", "rich"].found.startswith("not installed; pip install 'rich")


def test_a_target_without_its_package_says_what_to_install(found, monkeypatch):
    assert found()["targets", "openvino"].state == "ok"
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    findings = found()
    assert findings["targets", "onnx"].state == "ok"
    assert findings["targets", "openvino"].state == "missing"
    assert "pip install 'lighten[openvino]'" in findings["targets", "openvino"].found


def test_more_threads_than_cores_are_a_warning(found, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: doctor.cores())
    assert found()["machine", "threads"].state == "ok"
    monkeypatch.setattr(torch, "get_num_threads", lambda: doctor.cores() + 1)
    assert found()["machine", "threads"].state == "warning"
    assert f"OMP_NUM_THREADS={doctor.cores()}" in found()["machine", "threads"].found


def test_devices_are_named(found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Device {index}")
    assert found()["machine", "gpu"].found == "Device 0, Device 1"


def test_the_command_prints_lines_or_json_and_fails_where_something_must_be_mended(capsys, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor, "processor", lambda: "A processor")
    assert cli(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime" in out
    assert "A processor" in out
    assert cli(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["part"] for row in rows} == {"packages", "targets", "machine", "cluster"}
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    assert cli(["doctor"]) == 1
    assert "to be fixed; torch: not installed" in capsys.readouterr().err

"""Exporting twice gives the same bytes: in processes of their own, whose hashes of strings differ, for every target."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lighten import build_model, calibrate_, export, load, quantize_, save
from lighten.utils.targets import TARGETS, exported_files

EXAMPLE = torch.zeros(2, 1, 16, 16)


def _export(home, folder):
    model = load(Path(home) / "small")
    for target in TARGETS.values():
        export(model, EXAMPLE, Path(folder) / f"student{target.suffix}", target=target.name)
    for mode in (None, "float16", "dynamic"):
        plain = load(Path(home) / "float")
        export(plain, EXAMPLE, Path(folder) / f"{mode}.tflite", target="litert", mode=mode)
    save(model, Path(folder) / "again", data={"name": "fashion_mnist"})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The SHA-256 of each file, by process."""
    home = tmp_path_factory.mktemp("models")
    model = build_model("cnn", num_classes=10, input_shape=(1, 16, 16), widths=[8, 8]).eval()
    save(model, home / "float")
    quantize_(model)
    calibrate_(model, [torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    save(model, home / "small")
    found = []
    for number in range(2):
        folder = home / str(number)
        folder.mkdir()
        words = [str(home), str(folder)]
        if number == 0:
            _export(*words)
            _export(*words)  # runtimes that count through a process must not show it
        else:
            command = [sys.executable, "-c", f"import runpy; runpy.run_path({__file__!r})['_export'](*{words!r})"]
            environment = {**os.environ, "PYTHONHASHSEED": "3"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        files = [path for path in folder.rglob("*") if path.is_file()]
        found.append({str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    return found


@pytest.mark.parametrize(
    "name",
    [*exported_files("student"), "None.tflite", "float16.tflite",
     "dynamic.tflite", "again/config.json", "again/compression.json", "again/model.safetensors"],
)  # fmt: skip
def test_two_processes_write_the_same(exported, name):
    first, second = exported
    assert first[name] == second[name]


def test_nothing_else_was_written(exported):
    first, second = exported
    assert set(first) == set(second)
    assert len(first) == 12

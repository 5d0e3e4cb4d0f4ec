"""Exporting twice gives the same bytes: in processes of their own, whose hashes of strings differ, for every target."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lighten import build_model, calibrate_, export, load, quantize_, save
from lighten.utils.targets import TARGETS

EXAMPLE = torch.zeros(2, 1, 16, 16)


QUICK, SLOW = ("onnx", "openvino", "pt2"), ("litert", "executorch")
"""Targets that are written in a second, and in ten and more."""


def _export(home, folder, *targets):
    model = load(Path(home) / "small")
    for name in targets:
        export(model, EXAMPLE, Path(folder) / f"student{TARGETS[name].suffix}", target=name)
    for mode in (None, "float16", "dynamic") if "litert" in targets else ():
        plain = load(Path(home) / "float")
        export(plain, EXAMPLE, Path(folder) / f"{mode}.tflite", target="litert", mode=mode)
    save(model, Path(folder) / "again", data={"name": "fashion_mnist"})


@pytest.mark.parametrize("targets", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=" ".join)
def test_two_processes_write_the_same(tmp_path_factory, targets):
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
        words = [str(home), str(folder), *targets]
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
    first, second = found
    assert first == second
    assert len(first) >= len(targets) + 3

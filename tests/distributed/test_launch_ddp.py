import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_processes_that_a_strategy_starts_go_through_the_same_door(tmp_path):
    script = Path(__file__).with_name("launch_ddp.py")
    command = [sys.executable, str(script), "-m", "recipe=smoke", "seed=1,2", f"runs={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    expected = {f"seed{seed}-rank{rank}-of2" for seed in (1, 2) for rank in (0, 1)}
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.slow
def test_a_run_on_two_devices_measures_all_of_the_test_split(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "train.py", "recipe=smoke", f"runs={tmp_path}", "id=one"]
    command += ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "smoke" / "one"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["comparison"]["flips_of"] == 2000
    assert "deprecated" not in done.stderr
    assert (folder / "report.html").exists()

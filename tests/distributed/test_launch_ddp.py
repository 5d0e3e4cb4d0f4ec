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

"""What stands in the environment stays there: a whole run with secrets around it, and every byte of what it left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef0badcafe",
    "HF_TOKEN": "hf_SecretSecretSecretSecretSecretSecret",
    "AWS_SECRET_ACCESS_KEY": "wJalrSECRET/K7MDENG/bPxRfiCYabcdefghijkl",
    "SLURM_JWT": "eyJhbGciOiJIUzI1NiJ9.secret.of-a-cluster",
    "MADE_UP_TOKEN": "made-up-51c3e7",
}
SMALL = [
    "recipe=smoke", "id=secrets", "logger=wandb", "trainer.limit_train_batches=2", "trainer.enable_progress_bar=false",
    "data_options.validation=11000",
]  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run from its recipe to its report, with W&B offline; its folder and what it printed."""
    home = tmp_path_factory.mktemp("secrets")
    environment = {**os.environ, **SECRETS, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *SMALL]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return home, done.stdout + done.stderr


def test_no_secret_is_written_or_printed(ran):
    home, printed = ran
    files = [path for path in home.rglob("*") if path.is_file()]
    for name, secret in SECRETS.items():
        assert secret.encode() not in printed
        assert [path for path in files if secret.encode() in path.read_bytes() or secret in str(path)] == [], name


def test_all_that_a_run_leaves_was_looked_at(ran):
    home, _ = ran
    run = home / "runs" / "smoke" / "secrets"
    for name in ("recipe.yaml", "history.jsonl", "fit.json", "scores.json", "report.html", "student/README.md"):
        assert (run / name).stat().st_size, name
    (log,) = run.rglob("*.wandb")
    assert b"compress" in log.read_bytes()  # the settings stand there as plain bytes, so a secret would be found


def test_wandb_records_nothing_of_the_machine_and_the_command(ran):
    home, _ = ran
    (log,) = home.rglob("*.wandb")
    content = log.read_bytes()
    for word in ("data_options.validation=11000", "train.py", str(home)):
        assert word.encode() not in content
    assert not [
        path.name for path in home.rglob("*") if path.name in ("wandb-metadata.json", "output.log", "diff.patch")
    ]

import json

import pytest
from finished_run import write_run

from lighten.cli.registered import check_registered
from lighten.errors import UserError


def rename(path, kind, name):
    content = json.loads(path.read_text())
    content.get("config", content)[kind]["name"] = name
    path.write_text(json.dumps(content))


def test_what_is_shipped_is_known(tmp_path):
    check_registered(write_run(tmp_path / "run"), "measure")


@pytest.mark.parametrize(("kind", "group"), [("data", "lighten.data"), ("model", "lighten.models")])
def test_what_another_train_py_registers_is_told_with_two_ways_on(tmp_path, kind, group):
    run = write_run(tmp_path / "run")
    rename(run / "student" / "config.json", kind, "mine")
    with pytest.raises(UserError) as caught:
        check_registered(run, "verify")
    told = str(caught.value)
    assert told.startswith(f"{kind} 'mine' is not known here; if your own train.py registers it, run ")
    assert f"`python train.py verify {run}`" in told
    assert f"announces it as {group};" in told
    assert "\n" not in told


def test_before_there_is_a_student_the_fit_says_what_it_is_made_of(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "fit.json").write_text(json.dumps({"config": {"data": {"name": "mine"}}}))
    with pytest.raises(UserError, match="data 'mine' is not known here"):
        check_registered(run, "shrink")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"data": 3, "model": {"name": []}}', b"\xff", b"[" * 100_000])
def test_what_cannot_be_read_is_left_to_the_step(tmp_path, content):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_bytes(content)
    check_registered(tmp_path, "measure")
    check_registered(tmp_path / "none", "measure")

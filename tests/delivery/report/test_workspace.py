import json
import re
import sys
from pathlib import Path

import pytest
from search_run import make_search, make_trials

from lighten.cli.main import main
from lighten.delivery.report.panels import SECTIONS, search_sections
from lighten.delivery.report.publish_search import figures_of_trial
from lighten.delivery.report.search_figures import Search
from lighten.delivery.report.wording import CLASSES
from lighten.delivery.report.workspace import as_json, publish, workspace
from lighten.errors import UserError

SNAPSHOT = Path(__file__).with_name("workspace.txt")


def panels(view: dict) -> list[tuple[str, dict]]:
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return [(section["name"], panel) for section in sections for panel in section["panels"]]


def brief(view: dict) -> str:
    """A line for each panel, in place of all that W&B is sent; a table by the text of its query."""
    lines = []
    for section, panel in panels(view):
        config = json.dumps(panel["config"], ensure_ascii=False)
        if panel["viewType"] == "Weave":
            config = next(name for name in ("confusion", "plan") if f'"{name}"' in config or f'\\"{name}\\"' in config)
        lines.append(f"{panel['__id__']} | {section} | {panel['viewType']} | {config}\n")
    return "".join(lines)


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_dry_run_prints_what_the_snapshot_has_and_asks_no_network(no_network, capsys) -> None:
    assert main(["dashboard", "--entity", "me", "--project", "mine", "--dry-run"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["entity"], view["project"], view["name"]) == ("me", "mine", "lighten")
    assert list(SECTIONS) == ["Student against teacher", "Compression", "Speed", "System"]
    assert view["spec"]["section"]["settings"]["xAxis"] == "trainer/global_step"
    assert brief(view) == SNAPSHOT.read_text(encoding="utf-8"), "write tests/workspace.txt anew if this is meant"


def test_another_task_has_its_metrics_and_an_unknown_one_its_line(no_network, capsys) -> None:
    assert main(["dashboard", "--entity", "me", "--task", "image", "--dry-run"]) == 0
    shown = brief(json.loads(capsys.readouterr().out))
    assert '["teacher/psnr", "student/psnr"]' in shown
    assert "delivery/compressed/psnr" in shown
    assert "accuracy" not in shown
    assert main(["dashboard", "--entity", "me", "--task", "imag", "--dry-run"]) == 1
    assert "did you mean 'image'" in capsys.readouterr().err


def test_it_is_the_same_every_time() -> None:
    assert as_json(workspace("me", "mine")) == as_json(workspace("me", "mine"))


def test_final_figures_in_it_are_those_that_runs_have(tmp_path) -> None:
    """What is logged during a fit is compared in tests/training/test_wandb_run.py."""
    from finished_run import write_run

    from lighten.delivery.measure.scores import read_scores
    from lighten.delivery.report.publish import figures_of

    figures = figures_of(read_scores(write_run(tmp_path / "recipe" / "one")))
    shown = {name for panels in SECTIONS.values() for panel in panels for name in panel.metrics}
    assert {name for name in shown if name.startswith("delivery/")} <= set(figures)
    assert len(figures) == 31


def test_a_missing_extra_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["dashboard", "--entity", "me", "--dry-run"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pip install 'lighten[dashboard]'" in told


@pytest.mark.parametrize("key", [None, pytest.param("0" * 40, marks=pytest.mark.slow)])  # tries again for 20 s
def test_no_key_or_no_network_is_one_line(monkeypatch, capsys, tmp_path, key) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    import wandb

    wandb.teardown()
    assert main(["dashboard", "--entity", "me", "--project", "mine"]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("wandb:")]
    wandb.teardown()
    assert len(told) == 1
    assert told[0].startswith("error: me/mine: W&B takes no dashboard (")
    assert "wandb login" in told[0]


def test_what_is_published_is_what_was_printed(monkeypatch) -> None:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.workspaces import internal

    sent = []

    def take(view):
        sent.append(json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)))
        return {"upsertView": {"view": {"name": "nw-1", "id": "1"}}}

    monkeypatch.setattr(internal, "upsert_view2", take)
    monkeypatch.setattr(ws.Workspace, "url", "https://wandb.ai/me/mine?nw=1")
    made = workspace("me", "mine")
    assert publish(made) == "https://wandb.ai/me/mine?nw=1"
    assert sent == [json.loads(as_json(made))["spec"]]


def test_a_refusal_is_told_with_its_reason() -> None:
    class Refused:
        entity, project = "me", "mine"

        def save_as_new_view(self):
            raise ValueError("permission\ndenied.")

    with pytest.raises(UserError, match=r"me/mine: W&B takes no dashboard \(permission denied\); log in"):
        publish(Refused())


def test_searches_have_a_workspace_of_their_trials(no_network, capsys) -> None:
    assert main(["dashboard", "--entity", "me", "--search", "--dry-run"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert view["name"] == "lighten searches"
    assert list(dict.fromkeys(section for section, _ in panels(view))) == list(search_sections(CLASSES))
    shown = brief(view)
    known = set(figures_of_trial(Search(make_search()), make_trials()[4]))
    for name in re.findall(r"(?:trial|predicted|setting)/\w+", shown):
        assert name in known, name  # what publication sends
    assert "trial/latency_ms" in shown

import json
import random
import re
from html.parser import HTMLParser

import pytest
import yaml
from browser import title_in_browser
from finished_run import write_run

from lighten.cli.main import main as cli
from lighten.delivery.measure.scores import describe_task
from lighten.delivery.report.columns import COLUMNS
from lighten.delivery.report.compare import (
    by_task,
    compare_runs,
    comparison_json,
    comparison_table,
    render,
    write_comparison,
)
from lighten.delivery.report.figures import figure
from lighten.errors import UserError
from lighten.tasks import build_task


@pytest.fixture
def runs(tmp_path):
    """Six runs of one recipe whose accuracy, size and latency are drawn from few values, so that some tie."""
    draw = random.Random(4)
    folders = []
    for number in range(6):
        folder = write_run(tmp_path / "runs" / "distil_cnn" / f"job-{number}")
        scores = json.loads((folder / "scores.json").read_text())
        small = scores["models"]["compressed"]
        small["accuracy"] = draw.choice([0.88, 0.89, 0.9, 0.91])
        small["bytes"] = draw.choice([80_000, 100_000, 120_000])
        small["latency_ms"]["batch_1"]["median"] = draw.choice([0.5, 0.6, 0.7])
        scores["comparison"]["retention"] = small["accuracy"] / scores["models"]["teacher"]["accuracy"]
        (folder / "scores.json").write_text(json.dumps(scores))
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe |= {"id": f"job-{number}", "seed": number}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        folders.append(folder)
    return folders


def edit(folder, *path, value):
    scores = json.loads((folder / "scores.json").read_text())
    place = scores
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    (folder / "scores.json").write_text(json.dumps(scores))


def test_the_front_is_what_no_other_run_beats(runs):
    found = {run.name: run for run in compare_runs(runs)}
    points = {name: [run.figures[key].value for key in ("accuracy", "bytes", "latency")] for name, run in found.items()}
    for name, (accuracy, size, latency) in points.items():
        beaten = False
        for a, s, t in points.values():
            as_good = a >= accuracy and s <= size and t <= latency
            better = a > accuracy or s < size or t < latency
            beaten = beaten or (as_good and better)
        assert found[name].front is not beaten, name
    assert 0 < sum(run.front for run in found.values()) < len(runs)


def test_runs_of_other_data_are_not_judged_by_each_other(runs):
    for folder in runs[:2]:
        edit(folder, "models", "compressed", "bytes", value=1000)
        edit(folder, "models", "compressed", "accuracy", value=0.99)
        edit(folder, "models", "compressed", "latency_ms", "batch_1", "median", value=0.01)
    assert {run.name for run in compare_runs(runs) if run.front} == {"distil_cnn/job-0", "distil_cnn/job-1"}
    for folder in runs[:2]:
        edit(folder, "provenance", "data", "fingerprint", value="cd" * 32)
        edit(folder, "provenance", "data", "name", value="cifar10")
    others = [run for run in compare_runs(runs) if run.data != "cifar10"]
    assert any(run.front for run in others)
    assert "different data (cifar10, fashion_mnist)" in render(compare_runs(runs))


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_the_best_of_a_column_comes_first(runs, column):
    values = [run.figures[column.name].value for run in compare_runs(runs, sort=column.name)]
    assert values == sorted(values, reverse=column.more_is_better)


def test_rows_say_what_tells_runs_of_a_recipe_apart(runs):
    assert [run.differs for run in compare_runs(runs, sort="name")] == [(f"seed={n}",) for n in range(6)]


def test_names_are_as_long_as_they_must_be(tmp_path):
    folders = [write_run(tmp_path / where / "distil_cnn" / "same") for where in ("a", "b")]
    assert {run.name for run in compare_runs(folders)} == {"a/distil_cnn/same", "b/distil_cnn/same"}


class Figures(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.run = [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.run = attributes.get("data-run", self.run)
        if tag == "data" and self.run:
            self.found.append((self.run, attributes["data-key"], float(attributes["value"])))


def test_every_figure_is_its_runs_own(runs):
    scores = {f"distil_cnn/{folder.name}": json.loads((folder / "scores.json").read_text()) for folder in runs}
    found = Figures(render(compare_runs(runs))).found
    assert [key for _, key, _ in found] == [column.key for column in COLUMNS] * len(runs)
    for run, key, value in found:
        assert value == figure(scores[run], key).value, (run, key)


def test_the_page_is_written_beside_the_runs_or_where_asked(runs, tmp_path):
    assert write_comparison(compare_runs(runs)) == tmp_path / "runs" / "distil_cnn" / "compare.html"
    assert write_comparison(compare_runs(runs), tmp_path / "here.html").exists()
    assert not re.search(r'(src|href)="(?!data:|#)', (tmp_path / "here.html").read_text())


def test_other_machines_are_named(runs):
    assert "different machines" not in render(compare_runs(runs))
    edit(runs[0], "provenance", "machine", "processor", value="Another")
    page = render(compare_runs(runs))
    assert "different machines (AMD EPYC 7B13, 2 cores; Another, 2 cores)" in page


@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser_a_click_sorts_and_nothing_overflows(runs, tmp_path, width):
    script = """
    window.onerror = message => document.title = message;
    const size = [...document.querySelectorAll(".runs th button")].find(b => b.textContent === "Size");
    size.click();
    const shown = [...document.querySelectorAll(".runs tbody tr")].map(r => r.dataset.run + "=" + r.cells[5].innerText);
    const told = document.querySelector("[aria-sort]").innerText.trim();
    document.title = [document.documentElement.scrollWidth, told, ...shown].join("|");
    """
    page = write_comparison(compare_runs(runs)).read_text()
    needed, told, *rows = title_in_browser(page, width, tmp_path, script).split("|")
    assert int(needed) <= width
    assert told == "Size"
    before = compare_runs(runs)
    after = [run.name for run in sorted(before, key=lambda run: run.figures["bytes"].value)]
    assert after != [run.name for run in before]
    assert rows == [f"{name}={run.figures['bytes'].text}" for name in after for run in before if run.name == name]


def test_the_command_prints_a_table_or_json_and_says_where_the_page_is(runs, tmp_path, capsys):
    arguments = ["compare", *map(str, runs), "--sort", "bytes", "--out", str(tmp_path / "page.html")]
    assert cli(arguments) == 0
    out = capsys.readouterr().out
    assert "distil_cnn/job-3" in out
    assert "on the Pareto front" in out
    assert str(tmp_path / "page.html") in out.replace("\n", "")
    assert cli([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["bytes"] for row in rows] == sorted(row["bytes"] for row in rows)
    assert rows == json.loads(comparison_json(compare_runs(runs, sort="bytes")))
    assert comparison_table(compare_runs(runs)).row_count == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs[:1], "1 run folders, expected two or more"),
        (lambda runs: [runs[0], runs[0]], "each once"),
        (lambda runs: [runs[0], runs[0].parent / "none"], "no such folder"),
        (lambda runs: [runs[0], without_scores(runs[1])], "lighten measure"),
        (lambda runs: [runs[0], broken(runs[1])], "scores.json lacks figures; make it again"),
        (lambda runs: [runs[0], of_schema(runs[1], 3)], "job-1/scores.json: schema 3, expected 2; make it again with"),
        (lambda runs: [runs[0], of_schema(runs[1], None)], "job-1/scores.json: schema None, expected 2"),
        (lambda runs: [runs[0], cut(runs[1])], "job-1/scores.json: cannot be read as JSON"),
        (lambda runs: [runs[0], torn(runs[1])], r"recipe\.yaml: cannot be read as YAML \(line"),
    ],
    ids=["one", "twice", "missing", "unmeasured", "broken", "newer", "foreign", "cut", "torn"],
)
def test_what_cannot_be_compared_gets_a_line(runs, change, message):
    with pytest.raises(UserError, match=message) as error:
        compare_runs(change(runs))
    assert "\n" not in str(error.value)


def test_an_unknown_column_gets_a_line(runs):
    with pytest.raises(UserError, match=r"sort='speed'; .*faster"):
        compare_runs(runs, sort="speed")


def without_scores(folder):
    (folder / "scores.json").unlink()
    return folder


def broken(folder):
    edit(folder, "models", "compressed", value=None)
    return folder


def of_schema(folder, number):
    edit(folder, "schema", value=number)
    return folder


def cut(folder):
    path = folder / "scores.json"
    path.write_text(path.read_text()[:200])
    return folder


def torn(folder):
    (folder / "recipe.yaml").write_text("a: [1")
    return folder


def numbers(folder):
    """Make the run one that answers with numbers."""
    path = folder / "scores.json"
    scores = json.loads(path.read_text())
    scores["task"] = describe_task(build_task("regression", mean=[0.0], std=[1.0], unit="USD"))
    scores["comparison"] = {
        k: v for k, v in scores["comparison"].items() if k not in ("agreement", "flips", "flips_of")
    }
    scores["comparison"]["likeness"] = {"relative_error": 0.02}
    for model in scores["models"].values():
        model |= {"r2": model["accuracy"], "mae": 100 * model["bytes"] / 1e6, "rmse": 2.0, "pearson": 0.9}
    path.write_text(json.dumps(scores))
    return folder


def test_runs_of_another_task_have_its_columns_and_are_not_mixed_with_others(runs):
    with pytest.raises(UserError, match=r"is of task regression, .* of classification; compare runs that"):
        compare_runs([runs[0], numbers(runs[1])])
    found = compare_runs([numbers(run) if run != runs[1] else run for run in runs[:3]])
    assert "r2" in found[0].figures
    assert found[0].figures["mae"].text.endswith("USD")
    assert [run.figures["r2"].value for run in found] == sorted(
        (run.figures["r2"].value for run in found), reverse=True
    )
    cheapest = compare_runs(runs[:3], sort="mae")
    assert [run.figures["mae"].value for run in cheapest] == sorted(run.figures["mae"].value for run in cheapest)
    page = render(found)
    assert "best in R², size and latency" in page or "on the Pareto front" in page
    assert "Relative difference" in page
    assert [sorted(group) for group in by_task(runs)] == [sorted(runs[:3]), sorted(runs[3:])]

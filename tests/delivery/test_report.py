"""The report against the scores it was made from; how it looks is tested in tests/test_run.py, in a browser."""

import json
import re
from html.parser import HTMLParser

import pytest
from finished_run import make_history, make_scores, write_run

from lighten.delivery.figures import figure
from lighten.delivery.report import render, write_report
from lighten.errors import UserError


class Page(HTMLParser):
    """Collects tags, the text of the page, and figures by their place in ``scores.json``."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.figures, self._key = [], "", [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self._key = attributes.get("data-key")

    def handle_data(self, data):
        self.text += data
        if self._key:
            self.figures.append((self._key, data))
            self._key = None


def test_every_figure_on_the_page_is_the_one_in_the_scores(run):
    scores = json.loads((run / "scores.json").read_text())
    page = Page(write_report(run).read_text())
    assert len(page.figures) > 40
    for key, text in page.figures:
        assert text in (figure(scores, key).text, _inverse(scores, key)), key
    shown = {key for key, _ in page.figures}
    assert {f"comparison.{key}" for key in scores["comparison"]} <= shown


def _inverse(scores, key):
    value = figure(scores, key).value
    return f"{1 / value:.1f}×" if value < 1 else None


def test_it_fetches_nothing_and_runs_nothing(run):
    page = Page(render(run))
    fetched = [a[k] for _, a in page.tags for k in ("src", "srcset", "href", "xlink:href") if k in a]
    assert [target for target in fetched if not target.startswith(("#", "data:"))] == []
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "url(" not in render(run).replace("url(#", "")


def test_all_plots_are_there_with_words_for_those_who_cannot_see_them(run):
    html = render(run)
    page = Page(html)
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(drawings) == 6
    assert all(a.get("role") == "img" and (a.get("aria-label") or a.get("aria-labelledby")) for a in drawings)
    for heading in ("Student against teacher", "Pruning and quantization", "Widths before and after", "Size, latency"):
        assert heading in page.text


@pytest.mark.parametrize("missing", ["scores.json", "plan.json", "history.jsonl", "recipe.yaml"])
def test_whatever_is_missing_the_page_says_what_it_has(run, missing):
    (run / missing).unlink()
    page = Page(render(run))
    assert "distil_cnn" in page.text
    assert ("no pruning plan" in page.text) == (missing == "plan.json")
    assert ("no history.jsonl" in page.text) == (missing == "history.jsonl")
    assert bool(page.figures) == (missing != "scores.json")


def test_without_a_teacher_it_compares_with_the_dense_student(tmp_path):
    page = Page(render(write_run(tmp_path / "runs" / "prune_cnn" / "x", teacher=False)))
    assert "This run had no teacher" in page.text
    assert not [key for key, _ in page.figures if key.startswith("models.teacher")]


def test_a_cut_history_is_told_and_the_rest_is_drawn(run):
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 1210, "train/lo')
    page = Page(render(run))
    assert "cut short" in page.text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 6


def test_names_are_text_not_markup(run):
    scores = make_scores()
    scores["classes"]["names"][0] = "<script>alert(1)</script>"
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "recipe.yaml").write_text("# <img src=x onerror=alert(1)>\n")
    html = render(run)
    assert "<script>" not in html
    assert "<img" not in html


def test_a_long_history_makes_a_small_page(run):
    rows = make_history(steps=1_000_000, epochs=50)
    assert len(rows) == 100_000
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(render(run)) < 1_000_000


def test_the_same_folder_gives_the_same_page(run):
    assert render(run) == render(run)
    assert not re.search(r"<!-- \d{4}-", render(run))


@pytest.mark.parametrize("file", ["scores.json", "plan.json"])
def test_a_broken_file_is_told_in_one_line_and_an_earlier_report_stays(run, file):
    before = write_report(run).read_text()
    (run / file).write_text("{")
    with pytest.raises(UserError, match=f"{file}: cannot be read") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_text() == before

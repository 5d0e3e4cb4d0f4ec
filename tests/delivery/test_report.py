"""The report against the scores it was made from; how it looks is tested in tests/test_run.py, in a browser."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from finished_run import make_group, make_history, make_plan, make_scores, write_run

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
    assert len(drawings) == 5 + 3 + 3 + 12  # along the fit, savings, widths, and norms of each group
    assert all(a.get("role") == "img" and (a.get("aria-label") or a.get("aria-labelledby")) for a in drawings)
    for heading in ("Student against teacher", "Pruning and quantization", "Kept and removed", "Size, latency"):
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
    whole = render(run)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 1210, "train/lo')
    page = Page(render(run))
    assert "cut short" in page.text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == len(
        [tag for tag, _ in Page(whole).tags if tag == "svg"]
    )


def test_names_are_text_not_markup(run):
    scores = make_scores()
    scores["classes"]["names"][0] = "<script>alert(1)</script>"
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "recipe.yaml").write_text("# <img src=x onerror=alert(1)>\n")
    html = render(run)
    assert "<script>" not in html
    assert "<img" not in html


def with_plan(run, plan):
    (run / "plan.json").write_text(plan.to_json())
    return Page(render(run)).text.replace("\N{NO-BREAK SPACE}", " ")


def test_what_pruning_saved_is_told_against_what_was_asked(run):
    plan = replace(make_plan(amount=0.6, target="parameters"), saved={"macs": 0.55, "parameters": 0.602})
    text = with_plan(run, plan)
    assert "Asked for: 60.0 % of the parameters. Gone: 42.4 % of the channels, 55.0 % of the MACs, 60.2 %" in text
    assert "of the full strength" not in text
    assert "made at 25 % of the full strength" in with_plan(run, make_plan(strength=0.25))


def test_curves_are_shown_only_where_there_are_some(run):
    assert "Sensitivity" not in Page(render(run)).text
    text = with_plan(run, make_plan([make_group("stem", 16, 8, score="magnitude", probed=True)]))
    assert "Sensitivity" in text
    assert "50 % go: 0.69 nats" in text
    assert "magnitude: norms widely spread" in text
    assert "in 1 group, 8 are left" in text


def test_of_many_groups_the_heaviest_are_drawn_and_the_page_says_so(run):
    groups = [replace(make_group(f"g{i}x", 64, 32, probed=True), macs=i / 2000) for i in range(50)]
    (run / "plan.json").write_text(make_plan(groups).to_json())
    html = render(run)
    text = Page(html).text
    assert text.count("Drawn are the 24 of 50 groups that carry the most MACs.") == 3
    assert "Of 3200 channels in 50 groups, 1600 are left" in text
    assert sorted(set(re.findall(r"g\d+x", html))) == [f"g{i}x" for i in range(26, 50)]
    assert len(html) < 300_000
    assert "Drawn are" not in with_plan(run, make_plan(groups[:24]))


def test_names_of_groups_are_text_not_markup(run):
    (run / "plan.json").write_text(make_plan([make_group("<b>.<img src=x>", 8, 4, probed=True)]).to_json())
    html = render(run)
    assert "<img" not in html
    assert "&lt;b&gt;.<wbr>&lt;img src=x&gt;" in html


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

"""The report of a search against the ``search.json`` it was made from."""

import json
import re
from html.parser import HTMLParser

import pytest
from browser import title_in_browser
from search_run import make_search, make_trials, write_search

from lighten.delivery.report.figures import amount, milliseconds
from lighten.delivery.report.search_page import render, write_search_report
from lighten.errors import UserError


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.figures, self._key = [], "", [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._key = dict(attributes).get("data-key")

    def handle_data(self, data):
        self.text += data
        if self._key:
            self.figures.append((self._key, data.replace("\N{NO-BREAK SPACE}", " ")))
            self._key = None


def page_of(folder):
    return Page(render(folder))


def told_by(key, value):
    """How a figure should read, written down again by hand."""
    name = key.rpartition(".")[2]
    text = {
        "drop": lambda v: f"{100 * v:.2f} points", "metric": lambda v: f"{100 * v:.2f} %",
        "bytes": lambda v: amount(v, "B"),
        "latency_ms": milliseconds, "macs": amount, "parameters": amount,
    }[name](value)  # fmt: skip
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_every_figure_on_the_page_is_the_one_in_the_file(tmp_path):
    folder = write_search(tmp_path / "one")
    told = json.loads((folder / "search.json").read_text())
    figures = page_of(folder).figures
    assert len(figures) > 40
    for key, text in figures:
        parts = key.split(".")
        if parts[0] == "ratio":
            value = told["original"][parts[2]] / told["trials"][int(parts[1])]["measured"][parts[2]]
            assert text == f"{max(value, 1 / value):.1f}×", key
            continue
        value = told
        for part in parts:
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert text == told_by(key, value), key
    shown = {key for key, _ in figures}
    for number in range(6):
        assert {f"trials.{number}.measured.{key}" for key in ("metric", "drop", "latency_ms", "bytes")} <= shown


def test_each_trial_has_its_row_its_reasons_and_its_folder(tmp_path):
    page = page_of(write_search(tmp_path / "one"))
    rows = [a["id"] for tag, a in page.tags if tag == "tr" and "id" in a]
    assert rows == [f"trial-{number}" for number in range(8)]
    for one in make_trials():
        assert one["why"] in page.text
        assert (one["dropped"] or "") in page.text
    links = {a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")}
    assert links == {f"trials/{number}/" for number in range(6)}


def test_the_plan_the_reasons_and_the_confirmation_are_told(tmp_path):
    page = page_of(write_search(tmp_path / "one"))
    told = make_search()
    for sentence in (*told["plan"], *told["reasons"]):
        assert sentence in page.text
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "with 95 % confidence at most 0.92 points (Newcombe, one-sided)" in text
    assert "need met, and confirmed" in text
    assert "20 % of it is not fine-tuning" in text
    assert "fcis the network's output" in re.sub(r"\s*\n\s*", "", text)


def test_what_became_slower_is_not_called_faster(tmp_path):
    original = make_search()["original"] | {"latency_ms": 0.03}
    text = page_of(write_search(tmp_path / "one", original=original)).text
    assert re.search(r"2\.5×\s*slower", text)
    assert "faster" not in text.partition("The frontier")[0]


def test_a_need_that_is_not_met_is_said_with_the_nearest_and_with_what_would_help(tmp_path):
    page = page_of(write_search(tmp_path / "one", "not met"))
    assert "Not met: " in page.text
    assert make_search("not met")["nearest"] in page.text
    assert all(advice in page.text for advice in make_search("not met")["help"])
    assert "about 5,200 samples" in page.text


def test_a_running_search_says_so_and_its_page_loads_itself_again(tmp_path):
    folder = write_search(tmp_path / "one", "running")
    page = page_of(folder)
    assert "still searching" in page.text
    assert "So far: " in page.text
    assert "at work" in page.text
    assert ("meta", {"http-equiv": "refresh", "content": "15"}) in page.tags
    write_search(folder, "met")
    assert not any(a.get("http-equiv") == "refresh" for _, a in page_of(folder).tags)


@pytest.mark.parametrize("missing", ["look", "trials", "frontier", "original", "confirmation", "seconds", "plan",
                                     "help", "splits", "needs", "budget", "task", "metric"])  # fmt: skip
@pytest.mark.parametrize("gone", [True, False])
def test_the_page_is_written_from_whatever_is_there(tmp_path, missing, gone):
    told = make_search("running")
    if gone:
        del told[missing]
    else:
        told[missing] = None
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps(told))
    assert "still searching" in write_search_report(folder).read_text()


def test_a_search_at_its_very_beginning_has_a_page(tmp_path):
    (tmp_path / "search.json").write_text(json.dumps({"schema": 1, "state": "running"}))
    text = write_search_report(tmp_path).read_text()
    assert "no trial fits the need yet" in text


def test_nothing_of_the_file_becomes_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    trials = make_trials()
    trials[0] |= {"why": evil, "dropped": evil, "folder": "javascript:alert(1)"}
    trials[1] |= {"folder": "../../etc"}
    folder = write_search(tmp_path / "one")
    told = make_search(trials=trials, plan=[evil], nearest=evil, help=[evil], reasons=[evil])
    told["look"]["groups"][0]["name"] = evil
    told["look"]["layers"][0]["name"] = evil
    (folder / "search.json").write_text(json.dumps(told))
    html = render(folder)
    assert "<script" not in html
    assert "javascript:" not in html
    assert "../../etc" not in html


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        write_search_report(tmp_path)


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_a_phone_and_a_desk_without_scrolling_sideways(tmp_path, width):
    html = render(write_search(tmp_path / "one", "not met"))
    script = "document.title = document.documentElement.scrollWidth + ' ' + document.querySelectorAll('svg a').length"
    (tmp_path / "page").mkdir()
    scroll, links = title_in_browser(html, width, tmp_path / "page", script, dark=True).split()
    assert int(scroll) <= width
    assert int(links) == 6 + 6 + 4 + 4

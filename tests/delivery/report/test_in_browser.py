"""What those meet who read the report, or a comparison, on a phone or a desk, by day or night, without a mouse."""

import json

import pytest
from browser import title_in_browser
from finished_run import make_gate, write_confusion, write_run

from lighten.delivery.report.compare import compare_runs, write_comparison
from lighten.delivery.report.page import write_report

LOOK = """
const seen = colour => {
  const [r, g, b, a] = colour.match(/[\\d.]+/g).map(Number);
  return [r, g, b, a === undefined ? 1 : a];
};
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = seen(getComputedStyle(e).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const texts = [...document.querySelectorAll("body *")].filter(e =>
  [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !e.closest("title, script, style"));
const faint = texts.map(e => {
  const style = getComputedStyle(e), drawn = e.namespaceURI.endsWith("svg");
  const [a, b] = [light(seen(drawn ? style.fill : style.color)), light(behind(e))].sort((p, q) => q - p);
  return [(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 20)];
}).filter(([ratio]) => ratio < 4.5);
const scrolls = [...document.querySelectorAll("body *")].filter(e => {
  const style = getComputedStyle(e);
  return /auto|scroll/.test(style.overflowX + style.overflowY) && !e.closest("svg") &&
    (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1);
});
const stuck = scrolls.filter(e => {
  e.focus();
  return !e.hasAttribute("tabindex") || document.activeElement !== e || getComputedStyle(e).outlineStyle === "none";
});
const heads = [...document.querySelectorAll("h1, h2, h3")].map(h => Number(h.tagName[1]));
const jumps = heads.filter((level, i) => level > (i ? heads[i - 1] : 0) + 1);
const cut = [...document.querySelectorAll("svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(t => {
    const r = t.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1;
  }).map(t => t.textContent);
});
const wide = document.documentElement.scrollWidth;
document.title = JSON.stringify({texts: texts.length, faint, scrolls: scrolls.length, stuck: stuck.length, jumps, cut,
  wide, named: [...document.querySelectorAll("[tabindex], svg")].filter(e =>
    !e.getAttribute("aria-label") && !document.getElementById(e.getAttribute("aria-labelledby"))).length});
"""


@pytest.fixture
def report(tmp_path):
    """The page of a run of which everything is told, failures and warnings included."""
    import numpy as np

    run = write_run(tmp_path / "runs" / "distil_cnn" / "q", quantized=True)
    scores = json.loads((run / "scores.json").read_text())
    scores["gate"] = make_gate(warnings=["larger than float32"])
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "failure.json").write_text('{"error": "no network"}')
    write_confusion(run, ["shirt", "coat"], {"teacher": np.array([0, 1]), "compressed": np.array([1, 0])}, np.arange(2))
    return write_report(run).read_text()


@pytest.fixture
def comparison(tmp_path):
    runs = [write_run(tmp_path / "runs" / "distil_cnn" / f"job-{n}") for n in range(2)]
    return write_comparison(compare_runs(runs)).read_text()


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)], ids=["phone by night", "desk by day"])
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_all_of_it_can_be_read_and_reached(page, width, dark, tmp_path, request):
    shown = title_in_browser(request.getfixturevalue(page), width, tmp_path, LOOK, dark=dark)
    found = json.loads(shown)
    assert found.pop("texts") > 60
    assert found.pop("wide") <= width
    assert found.pop("scrolls") >= (width < 500)
    assert found == {"faint": [], "stuck": 0, "jumps": [], "cut": [], "named": 0}


def test_what_cannot_is_found(tmp_path):
    """The test above can fail."""
    page = (
        "<body style='background:#fff'><h1>A</h1><h3>B</h3><p style='color:#aaa'>pale</p>"
        "<div style='overflow-x:scroll;width:50px'><p style='width:400px'>far</p></div><svg role='img' width='20'>"
        "<text x='5' y='9'>too long for it</text></svg></body>"
    )
    found = json.loads(title_in_browser(page, 390, tmp_path, LOOK))
    assert [text for _, text in found["faint"]] == ["pale"]
    assert (found["jumps"], found["cut"], found["stuck"], found["named"]) == ([3], ["too long for it"], 1, 1)
    with pytest.raises(AssertionError, match="CONSOLE"):
        title_in_browser("<body><svg><path d='M1 x'/></svg></body>", 390, tmp_path, "document.title = 1")

from io import StringIO

import pytest
from finished_run import make_gate, make_scores, make_targets
from rich.console import Console

from lighten.delivery.report.figures import rows
from lighten.delivery.report.table import closing_table


def printed(scores, *, colours=None):
    out = StringIO()
    console = Console(file=out, width=120, color_system=colours, force_terminal=colours is not None)
    console.print(closing_table(scores))
    return out.getvalue().replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("teacher", [True, False])
def test_table_shows_every_figure(teacher):
    scores = make_scores(teacher=teacher)
    out = StringIO()
    Console(file=out, width=120, color_system=None).print(closing_table(scores))
    shown = out.getvalue()
    for row in rows(scores):
        for cell in (*row.cells, row.gain):
            assert cell is None or cell.text in shown, row.label
    assert ("Teacher" in shown) == teacher
    assert "2 of 2,000 predictions differ from PyTorch" in " ".join(shown.split())
    assert "1 thread(s)" in shown


def test_each_runtime_has_a_column_and_a_missing_one_its_line():
    lines = printed(make_scores() | {"targets": make_targets()}).splitlines()
    after = lines[lines.index(next(line for line in lines if "In each runtime" in line)) :]
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in after]
    assert ["", "ONNX", "OpenVINO", "LiteRT"] in cells
    assert ["Differ from PyTorch", "2 of 2,000", "3 of 2,000", "7 of 2,000"] in cells
    assert ["Latency, batch 32", "16.4 ms", "13.5 ms", "22.0 ms"] in cells
    assert "ExecuTorch was not measured: pip install 'lighten[executorch]'" in lines


def test_warnings_are_printed_last_and_red():
    scores = make_scores() | {"gate": make_gate(warnings=["slower [bold]than float32[/bold]"])}
    last = printed(scores, colours="standard").splitlines()[-1]
    assert last == "\x1b[1;31mWarning: slower [bold]than float32[/bold]\x1b[0m"
    assert "1.2× slower at batch 32 (14.1 ms → 16.4 ms)." in printed(scores)
    assert "Warning" not in printed(make_scores() | {"gate": make_gate(warnings=[])})


def test_of_a_run_in_floating_point_there_is_the_comparison_alone():
    shown = printed(make_scores())
    assert not [word for word in ("Warning", "In each runtime", "not measured", "Against") if word in shown]
    assert shown.rstrip().endswith("Compressed: what you deploy.")


@pytest.mark.parametrize("ratio", [1.02, 0.985])
def test_a_ratio_that_rounds_to_one_is_neither_faster_nor_slower(ratio):
    told = printed(make_scores() | {"gate": make_gate(speedup_batch_1=ratio, size_ratio=ratio, warnings=[])})
    assert "onnxruntime: as large (402 kB → 121 kB), as fast at batch 1 (1.12 ms → 0.621 ms)," in told

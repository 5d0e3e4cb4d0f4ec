from io import StringIO

import pytest
from finished_run import make_scores
from rich.console import Console

from lighten.delivery.figures import rows
from lighten.delivery.table import closing_table


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
    assert "2 of 2000 predictions differ from PyTorch" in " ".join(shown.split())
    assert "1 thread(s)" in shown

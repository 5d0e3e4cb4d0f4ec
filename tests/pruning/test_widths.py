import pytest

from lighten.errors import UserError
from lighten.pruning.planner import trace_structure
from lighten.pruning.settings import Settings
from lighten.pruning.widths import Allocation, allocate_widths


def test_an_allocation_is_read_back_as_it_was():
    for allocation in (Allocation((1, 2)), Allocation((3,), (((0.0, 0.0), (0.5, 0.1)),), 0.25)):
        assert Allocation.from_json(allocation.to_json()) == allocation


def test_uniform_widths_need_no_scores_and_global_ones_are_not_known_before(build, images):
    model = build("residual")
    structure = trace_structure(model, ((images,), {}))
    found = allocate_widths(structure, model, Settings(0.5, score="taylor"), accumulated_gradients={})
    assert found == Allocation(tuple(group.width // 2 for group in structure.groups))
    assert allocate_widths(structure, model, Settings(0.5, scope="global")) is None


def test_curves_that_were_measured_before_stand_for_calibration(build, images):
    model = build("residual")
    structure = trace_structure(model, ((images,), {}))
    settings = Settings(0.5, scope="sensitivity", target="macs")
    measured = allocate_widths(structure, model, settings, calibration=[((images,), {})])
    curves = {group.name: curve for group, curve in zip(structure.groups, measured.curves, strict=True)}
    assert allocate_widths(structure, model, settings, curves=curves) == measured
    flat = dict.fromkeys(curves, ((0.0, 0.0), (0.9, 0.0)))
    first = next(iter(curves))
    spared = allocate_widths(structure, model, settings, curves=flat | {first: ((0.0, 0.0), (0.9, 9.0))})
    assert spared.counts[0] == 0
    with pytest.raises(UserError, match=f"curves lack group '{first}'"):
        allocate_widths(structure, model, settings, curves={})

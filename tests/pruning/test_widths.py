import pytest

from lighten.errors import UserError
from lighten.pruning.cut import shrink
from lighten.pruning.planner import plan_pruning, trace_structure
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
    rest = {name: curve for name, curve in curves.items() if name != first}
    assert allocate_widths(structure, model, settings, curves=rest, calibration=[((images,), {})]) == measured


@pytest.mark.parametrize("target", ["channels", "macs", "parameters"])
def test_less_of_the_original_than_is_gone_is_refused_and_a_share_of_the_present_is_not(build, images, target):
    model = build("residual")
    half = shrink(model, plan_pruning(model, images, 0.5, target=target))
    with pytest.raises(UserError, match="are gone already"):
        plan_pruning(half, images, 0.3, target=target, of="original")
    for amount, of in ((0.3, "present"), (0.7, "original")):
        assert any(cut.removed for cut in plan_pruning(half, images, amount, target=target, of=of).cuts)

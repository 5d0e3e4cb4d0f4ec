import copy
import random

import pytest
import torch
from torch import nn

from lighten import mask_, plan_pruning, shrink
from lighten.models import build_model
from lighten.pruning.earlier import compose
from lighten.pruning.live import STATE_KEY, add_cuts_, beyond, laid_out, lay_out_, live_cut_of, remaining, whole_tensors
from lighten.pruning.live_cut import cut_live_, take_shapes_
from lighten.pruning.planner import make_plan, trace_structure
from lighten.pruning.settings import Settings


def network():
    torch.manual_seed(0)
    return build_model("resnet20", num_classes=3, input_shape=(1, 8, 8), width=8, blocks=1).eval()


def plans(model):
    """Return a plan, and one that removes more."""
    structure = trace_structure(model, ((torch.randn(2, 1, 8, 8),), {}))
    first = make_plan(structure, model, Settings(0.5, align=1), ramp=0.5, exact=True)
    return first, make_plan(structure, model, Settings(0.5), after=first)


def removed(plan):
    return {(slot.tensor, slot.dim): (cut.size, cut.removed) for cut in plan.cuts for slot in cut.slots}


def test_what_is_beyond_composes_to_the_whole():
    less, more = plans(network())
    assert removed(compose(less, beyond(more, less))) == removed(more)
    assert beyond(less, less).cuts == ()
    sizes = {cut.size for cut in beyond(more, less).cuts}
    assert sizes == {6, 12, 24}


def test_laying_out_is_the_masked_network_again():
    model = network()
    less, more = plans(model)
    x = torch.randn(4, 1, 8, 8)
    masked = copy.deepcopy(model)
    mask_(masked, more)
    expected = masked(x)
    mask_(model, more)
    widths = {name: (m.in_channels, m.out_channels) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for plan in (less, more):
        mask_(model, plan)
        cut_live_(model, plan)
    torch.testing.assert_close(model(x), expected)
    assert sum(p.numel() for p in model.parameters()) < 0.3 * sum(p.numel() for p in masked.parameters())
    again = laid_out(model)
    lay_out_(model)
    for wide in (again, model):
        torch.testing.assert_close(wide(x), expected)
        pairs = zip(wide.named_parameters(), masked.parameters(), strict=True)
        assert all(torch.equal(p, q) for (_, p), q in pairs)
        found = {name: (m.in_channels, m.out_channels) for name, m in wide.named_modules() if isinstance(m, nn.Conv2d)}
        assert found == widths
        assert live_cut_of(wide) is None


def test_shrink_and_mask_take_the_same_plan_after_masks_and_after_cuts():
    model = network()
    less, more = plans(model)
    expected = shrink(model, more)
    mask_(model, less)
    cut_live_(model, less)
    small = shrink(model, more)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(small(x), expected(x))
    mask_(model, more)
    torch.testing.assert_close(model(x), expected(x))
    assert live_cut_of(small) is None
    assert small.lighten_record.plan.hash == more.hash


def test_a_plan_of_what_is_there_now_is_known_from_one_of_before():
    model = network()
    less, more = plans(model)
    mask_(model, less)
    cut_live_(model, less)
    present = plan_pruning(model, torch.randn(2, 1, 8, 8), 0.25)
    assert remaining(model, present) is present
    assert remaining(model, more) is not more
    small = shrink(model, present)
    assert small.conv1.out_channels == 5  # 8, then 6, and a quarter of them, halves down


@pytest.mark.parametrize("order", range(4))
def test_any_state_of_a_fit_gives_the_network_its_shape(order):
    original = network()
    less, more = plans(original)
    states = [original.state_dict()]
    trained = copy.deepcopy(original)
    for plan in (less, more):
        mask_(trained, plan)
        cut_live_(trained, plan)
        add_cuts_(trained, state := dict(copy.deepcopy(trained.state_dict())))
        assert STATE_KEY in state
        states.append(state)
    bare = {name: value for name, value in states[1].items() if name != STATE_KEY}
    turns = [*states, states[2], states[0]]
    random.Random(order).shuffle(turns)
    turns = [bare, *turns]  # by shapes alone, while the cuts are known
    for state in turns:
        trained.load_state_dict(take_shapes_(trained, state))
        if state is not bare:  # who has never been cut needs the entry
            other = network()
            other.load_state_dict(take_shapes_(other, state))
            torch.testing.assert_close(trained(torch.ones(1, 1, 8, 8)), other(torch.ones(1, 1, 8, 8)))
        assert trained.conv1.out_channels == state["conv1.weight"].shape[0]


def test_whole_tensors_carry_gradients_in_their_places():
    model = network()
    less, _ = plans(model)
    mask_(model, less)
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    cut_live_(model, less)
    found = whole_tensors(model)
    for (name, dim), (size, gone) in removed(less).items():
        if name in before:
            left = torch.tensor([i for i in range(size) if i not in gone])
            kept = before[name].index_select(dim, left)
            assert found[name].shape == before[name].shape
            assert torch.count_nonzero(found[name].grad.index_select(dim, torch.tensor(gone))) == 0
            assert found[name].grad.index_select(dim, left).norm() <= kept.norm()


def test_attention_that_was_cut_is_pytorchs_own_again():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 16)
    structure = trace_structure(model, ((x,), {}))
    plan = make_plan(structure, model, Settings(0.5))
    mask_(model, plan)
    expected, kind = model(x), type(model.self_attn)
    cut_live_(model, plan)
    assert type(model.self_attn) is not kind
    torch.testing.assert_close(model(x), expected)
    lay_out_(model)
    assert (type(model.self_attn), model.self_attn.num_heads) == (kind, 4)
    mask_(model, plan)
    torch.testing.assert_close(model(x), expected)

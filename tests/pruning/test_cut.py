import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.errors import UserError
from lighten.models import build_model
from lighten.pruning import Plan, mask_, plan_pruning, shrink
from lighten.pruning.plan import Cut
from lighten.utils.compression import record_, record_of
from lighten.utils.layout import is_narrow


def outputs(model, inputs):
    with torch.no_grad():
        return model(inputs)


def test_masked_equals_shrunk(network, images):
    plan = plan_pruning(network, images, 0.3, score="magnitude")
    small = shrink(network, plan)
    masked = copy.deepcopy(network)
    mask_(masked, plan)
    assert (outputs(masked, images) - outputs(small, images)).abs().max() <= 1e-5
    exact = outputs(masked.double(), images.double()) - outputs(small.double(), images.double())
    assert exact.abs().max() <= 1e-12


def test_widths_are_those_of_the_plan(halved):
    _, plan, small = halved
    modules = dict(small.named_modules())
    for layer, (_, after) in plan.widths.items():
        module = modules[layer]
        assert after == (module.out_features if isinstance(module, nn.Linear) else module.out_channels), layer
    assert any(before > after for before, after in plan.widths.values())


def test_every_module_states_its_own_shape(halved):
    """A module rebuilt from what it says of itself takes the shrunk weights."""
    _, _, small = halved
    facts = {
        nn.Conv2d: ("in_channels", "out_channels", "kernel_size"),
        nn.ConvTranspose2d: ("in_channels", "out_channels", "kernel_size"),
        nn.Linear: ("in_features", "out_features"),
        nn.BatchNorm2d: ("num_features",),
        nn.BatchNorm1d: ("num_features",),
        nn.PReLU: ("num_parameters",),
    }
    for module in small.modules():
        if type(module) in facts:
            options = {name: getattr(module, name) for name in ("groups",) if hasattr(module, name)}
            if hasattr(module, "bias") and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                options["bias"] = module.bias is not None
            rebuilt = type(module)(*(getattr(module, fact) for fact in facts[type(module)]), **options)
            rebuilt.load_state_dict(module.state_dict())


def test_trains_and_exports(halved, images):
    small = copy.deepcopy(halved[2]).train()
    small(images).square().mean().backward()
    assert all(p.grad.shape == p.shape for p in small.parameters() if p.grad is not None)
    torch.export.export(small.eval(), (images,))


def test_the_model_is_left_as_it_is(build, images):
    model = build("mobile").train()
    model.head.bias.requires_grad_(False)
    model(images).sum().backward()
    plan = plan_pruning(model, images, 0.5)
    state = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    shrink(model, plan)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(grads[name], p.grad) for name, p in model.named_parameters() if p.grad is not None)
    assert [module.training for module in model.modules()] == modes
    assert record_of(model).plan is None


def test_modes_flags_hooks_and_types_go_along(build, images):
    model = build("mobile").half().train()
    model.stem.eval()
    model.squeeze.weight.requires_grad_(False)
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    small = shrink(model, plan_pruning(model, images.half(), 0.5))
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert {p.dtype for p in small.parameters()} == {torch.float16}
    calls.clear()
    small.float()(images)
    assert calls == [1]
    assert all(p.grad is None for p in small.parameters())


def last(width, images):
    model = build_model("resnet20", num_classes=3, input_shape=tuple(images.shape[1:]), width=width, blocks=1)
    return model.to(memory_format=torch.channels_last)


def test_channels_last_stays(images):
    model = last(32, images)
    small = shrink(model, plan_pruning(model, images, 0.5))
    assert small.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.conv1.weight.is_contiguous()


def test_channels_come_first_where_they_are_too_few_for_a_strided_1x1_convolution(images):
    """With channels last, oneDNN's gradients of its weights are wrong, or the process dies."""
    model = last(16, images)
    small = shrink(model, plan_pruning(model, images, 0.5))
    assert not is_narrow(model)
    assert is_narrow(small)
    assert all(p.is_contiguous() for p in small.parameters())


class Remembering(nn.Conv2d):
    """A convolution that looks at its norm, keeps something per filter, and says how to cut it."""

    def cut_channels_(self, tensor, dim, kept):
        if tensor == "weight" and dim == 0:
            self.ranges = self.ranges[kept]


def test_subclasses_siblings_and_what_they_keep_go_along(build, images):
    model = build("residual")
    conv, norm = model.a1
    conv.__class__ = Remembering
    object.__setattr__(conv, "norm", norm)
    conv.ranges = torch.arange(8.0)
    plan = plan_pruning(model, images, 0.5)
    small = shrink(model, plan)
    assert type(small.a1[0]) is Remembering
    assert small.a1[0].norm is small.a1[1]
    assert small.a1[0].out_channels == small.a1[0].norm.num_features == 4
    row = next(row for row in plan.groups if row.name == "a1.0")
    assert small.a1[0].ranges.tolist() == list(row.kept)
    assert conv.ranges.tolist() == list(range(8))


def test_tied_weights_stay_tied(images):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(F.relu(self.b(F.relu(self.a(self.stem(x))))))

    model = Tied()
    small = shrink(model, plan_pruning(model, images, 0.5))
    assert small.a.weight is small.b.weight
    assert small.a.weight.shape == (3, 3)


def test_carries_its_plan_which_fits_it_no_more(build, images):
    model = build("flat")
    plan = plan_pruning(model, images, 0.5)
    small = shrink(model, plan)
    assert record_of(small).plan is plan
    for again in (lambda: shrink(small, plan), lambda: mask_(small, plan)):
        with pytest.raises(UserError, match=r"does not match the plan: .* give the model that was planned"):
            again()


def test_what_was_cut_is_cut_again_and_one_plan_says_it_all(network, images):
    once = shrink(network, plan_pruning(network, images, 0.3))
    plan = plan_pruning(once, images, 0.4)
    twice = shrink(once, plan)
    total = record_of(twice).plan
    assert total.hash not in (plan.hash, record_of(once).plan.hash)
    assert {layer: after for layer, (_, after) in total.widths.items()} == {n: w for n, (_, w) in plan.widths.items()}
    again = shrink(network, Plan.from_json(total.to_json()))
    assert torch.equal(outputs(again, images), outputs(twice, images))
    kept = 1 - (1 - record_of(once).plan.saved["parameters"]) * (1 - plan.saved["parameters"])
    count = [sum(p.numel() for p in model.parameters()) for model in (network, twice)]
    assert total.saved["parameters"] == pytest.approx(kept) == pytest.approx(1 - count[1] / count[0])


def test_a_part_that_is_built_alone_carries_its_own_plan(build, images):
    model = nn.Sequential(build("flat"), nn.Softmax(1))
    record_(model[0], spec={"name": "flat"})
    small = shrink(model, plan_pruning(model, images, 0.5))
    again = shrink(build("flat"), record_of(small[0]).plan)
    assert [p.shape for p in again.parameters()] == [p.shape for p in small[0].parameters()]
    assert record_of(small[1]).plan is None


def test_a_plan_read_from_json_cuts_a_reloaded_model(build, images):
    model, other = build("concat"), build("concat")
    plan = plan_pruning(model, images, 0.5)
    small = shrink(other, Plan.from_json(plan.to_json()))
    assert torch.equal(outputs(small, images), outputs(shrink(model, plan), images))


def test_a_cut_that_changes_the_network_is_refused(build, images):
    """Where a plan forgets a producer's twin, masked and shrunk disagree or the shrunk one cannot run."""
    model = build("concat")
    plan = plan_pruning(model, images, 0.5)
    cut = next(cut for cut in plan.cuts if any(slot.tensor == "c.0.weight" and slot.dim == 1 for slot in cut.slots))
    shifted = Cut(cut.size, tuple(sorted((p + 1) % cut.size for p in cut.removed)), cut.slots)
    wrong = Plan(plan.groups, tuple(shifted if c is cut else c for c in plan.cuts), {}, {}, {}, plan.example)
    with pytest.raises(RuntimeError, match="would change the network"):
        shrink(model, wrong)


def test_a_model_that_only_runs_in_float32_is_checked_in_float32(build, images):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(8, 6), nn.Linear(6, 2)
            self.mix = [torch.eye(2)]

        def forward(self, x):
            return self.head(self.a(x)) @ self.mix[0]

    model = Single()
    plan = plan_pruning(model, images, 0.5)
    assert shrink(model, plan).a.out_features == 3

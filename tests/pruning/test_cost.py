"""What a plan says it saves, against counters that know nothing of plans."""

import copy

import pytest
import torch
import torch_pruning
from zoo import ZOO

from lighten.pruning import plan_pruning, shrink


@pytest.mark.parametrize("target", ["macs", "parameters"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "mobilenet_v2", "densenet", "bert"])
def test_a_target_is_met_within_two_percent(name, scope, target):
    torch.manual_seed(0)
    build, example = ZOO[name]
    model, inputs = build().eval(), example()
    plan = plan_pruning(model, inputs, 0.6, scope=scope, target=target)
    assert plan.saved[target] == pytest.approx(0.6, abs=0.02)


def test_torch_pruning_counts_the_same_saving(build, images):
    model = build("residual")
    plan = plan_pruning(model, images, 0.5, target="macs")
    before, _ = torch_pruning.utils.count_ops_and_params(copy.deepcopy(model), images)
    after, _ = torch_pruning.utils.count_ops_and_params(copy.deepcopy(shrink(model, plan)), images)
    assert plan.saved["macs"] == pytest.approx(1 - after / before, abs=0.02)

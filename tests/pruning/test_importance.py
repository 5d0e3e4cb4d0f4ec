import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.errors import UserError
from lighten.pruning import plan_pruning
from lighten.pruning.score import l1, random, taylor
from lighten.pruning.settings import SCORES


def test_every_score_has_a_plan(build, images):
    model = build("residual")
    F.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    hashes = {}
    for name in SCORES:
        plan = plan_pruning(model, images, 0.5, score=name)
        assert plan.sparsity == 0.5
        assert all(row.score for row in plan.groups)
        hashes[name] = plan.hash
    del hashes["auto"], hashes["mix"], hashes["l1"]  # these may agree with fpgm or magnitude
    assert len(set(hashes.values())) == len(hashes)


def test_l1_and_random_are_of_the_whole_group(build, images):
    model = build("residual")
    whole = torch.cat([model.stem[0].weight.flatten(1), model.a2[0].weight.flatten(1)], dim=1)
    assert plan_pruning(model, images, 0.5, score="l1").groups[0].scores == pytest.approx(l1(whole).tolist())
    drawn = plan_pruning(model, images, 0.5, score="random").groups[0]
    assert drawn.scores == pytest.approx(random(8, name="stem.0").tolist())


def test_norm_scales_are_added_over_the_norms_of_a_group(build, images):
    model = build("residual")
    model.a2[1].weight.data.neg_()
    row = plan_pruning(model, images, 0.5, score="bn_scale").groups[0]
    assert row.scores == pytest.approx((model.stem[1].weight + model.a2[1].weight.abs()).tolist())


def test_a_group_without_a_norm_goes_by_magnitude_and_says_so(build, images):
    row = plan_pruning(build("flat"), images, 0.5, score="bn_scale").groups[0]
    assert (row.score, row.why) == ("magnitude", "no norm follows")


def test_taylor_adds_up_what_all_layers_of_a_group_change(build, images):
    model = build("residual")
    F.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    rows = [
        torch.cat([w.flatten(1), v.flatten(1)], dim=1)
        for w, v in [
            (model.stem[0].weight, model.a2[0].weight),
            (model.stem[0].weight.grad, model.a2[0].weight.grad),
        ]
    ]
    found = plan_pruning(model, images, 0.5, score="taylor").groups[0]
    assert found.scores == pytest.approx(taylor(*rows).tolist(), rel=1e-5)


def test_taylor_without_gradients_is_refused(build, images):
    with pytest.raises(UserError, match=r"score='taylor' needs gradients, and none .* has reached stem.0, .*; run a"):
        plan_pruning(build("residual"), images, 0.5, score="taylor")


def test_auto_takes_the_norm_where_it_ranks_well_and_says_why(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    with torch.no_grad():
        model[0].weight.mul_(torch.linspace(0.0, 2.0, 8)[:, None, None, None])
        model[2].weight.div_(model[2].weight.flatten(1).norm(dim=1)[:, None, None, None])
    first, second = plan_pruning(model, images, 0.5, score="auto").groups
    assert (first.score, second.score) == ("magnitude", "fpgm")
    norms = model[0].weight.detach().flatten(1).norm(dim=1)
    spread = float(norms.std(correction=0) / norms.mean())
    assert first.why == f"norms widely spread ({spread:.2f} of their mean), the smallest near zero (0.00)"
    assert second.why == "norms alike (0.00 of their mean), the smallest far from zero (1.00)"
    assert second.norms == pytest.approx([1.0] * 8)
    table = " ".join(str(plan_pruning(model, images, 0.5, score="auto")).split())
    assert "magnitude: norms" in table

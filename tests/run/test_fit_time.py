import pytest
import torch
from torch import nn

from lighten import plan_pruning
from lighten.pruning.settings import PruneSettings
from lighten.run.fit_time import _cut_at, predict_fit


def test_a_fit_with_cuts_is_between_that_of_the_cut_and_of_the_whole_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3))
    batch = torch.randn(8, 3, 24, 24)
    plan, before = plan_pruning(model, batch[:1], 0.5), {n: t.clone() for n, t in model.state_dict().items()}
    found = predict_fit(model, plan, PruneSettings(0.5, begin=0.0, end=0.5), batch)
    assert found.cut / found.whole <= found.share <= 1.0 + 1e-9 or found.cut > found.whole
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert f"{found.share:.0%} of the time with masks" in str(found)


@pytest.mark.parametrize("shape", ["linear", "cubic"])
def test_what_is_cut_rises_in_steps_up_to_the_whole(shape):
    settings = PruneSettings(0.5, begin=0.2, end=0.6, schedule=shape, cuts=3)
    found = [_cut_at(at / 1000, settings) for at in range(1000)]
    assert found == sorted(found)
    assert len(set(found)) == 5  # none, three on the way, and the last
    assert (found[200], found[600]) == (0.0, 1.0)

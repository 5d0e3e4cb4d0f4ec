import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning import latency, plan_pruning, shrink
from lighten.pruning.check import describe, synthesise
from lighten.pruning.planner import trace_structure
from lighten.pruning.settings import Settings


@pytest.fixture
def clockwork(monkeypatch):
    """A clock on which a model takes as long as it has parameters in convolutions."""

    class Session:
        def __init__(self, model):
            self.seconds = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))

    monkeypatch.setattr(latency, "_session", lambda model, example, path: Session(model))
    monkeypatch.setattr(latency, "interleaved", lambda runs, **_: [run.seconds for run in runs])


@pytest.mark.parametrize("amount", [0.3, 0.5, 0.8])
def test_a_share_of_the_time_goes(amount, clockwork, build, images):
    model = build("residual")
    plan = plan_pruning(model, images, amount, target="latency")
    clock = latency._session(model, None, None).seconds
    assert plan.saved["latency"] == 1 - latency._session(shrink(model, plan), None, None).seconds / clock
    assert plan.saved["latency"] == pytest.approx(amount, abs=0.06)  # widths of 8 and 16
    assert plan.settings["target"] == "latency"


def test_what_is_out_of_reach_says_how_far_one_can_go(clockwork, build, images):
    with pytest.raises(UserError, match=r"amount=0.999 of the latency cannot be reached: 0.9\d at the narrowest"):
        plan_pruning(build("residual"), images, 0.999, target="latency")


def test_global_and_latency_do_not_go_together():
    with pytest.raises(UserError, match="target=latency: expected scope uniform or sensitivity, whose widths stay"):
        Settings(0.5, scope="global", target="latency")


def test_what_is_timed_is_the_model_in_its_runtime(build, images, tmp_path):
    model = build("residual")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = model(synthesise(describe(((images,), {})), torch.device("cpu"), torch.float32)[0][0])
        torch.manual_seed(0)
        run = latency._session(model, describe(((images,), {})), tmp_path / "model.onnx")
    assert torch.allclose(torch.from_numpy(run()[0]), expected, atol=1e-5)
    assert all(seconds > 0 for seconds in latency.interleaved([run, run], rounds=2))


def test_every_layer_is_timed_before_and_after(build, images):
    model = build("mobile")
    structure = trace_structure(model, ((images,), {}))
    found = latency.predict(structure, [group.width // 2 for group in structure.groups])
    assert set(found) == {"stem.0", "expand.0", "depthwise.0", "project.0", "squeeze", "excite", "head"}
    assert all(before > 0 and after > 0 for before, after in found.values())
    assert latency._narrowed(latency.Geometry((2, 12, 8, 8), (2, 12, 8, 8), (3, 3), 12), 0.5, 1.0) == latency.Geometry(
        (2, 6, 8, 8), (2, 6, 8, 8), (3, 3), 6
    )


def test_a_node_computes_the_layer_it_stands_for():
    """Strides and padding are told from the sizes: the output has the layer's shape."""
    for layer, size in (
        (nn.Conv2d(4, 6, 3, 2, 1), 15),
        (nn.Conv2d(4, 4, 5, 1, 2, groups=4), 9),
        (nn.Conv2d(4, 6, 3), 9),
    ):
        x = torch.randn(2, 4, size, size)
        shape = tuple(layer(x).shape)
        geometry = latency.Geometry(tuple(x.shape), shape, tuple(layer.kernel_size), layer.groups)
        assert latency._node(geometry)()[0].shape == shape

"""Weights that the forward computes: each is cut as one that is a parameter, exactly."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from pruning_nets import Net, assert_right, groups_of, net
from torch import nn
from torch.nn.utils import parametrizations as P
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm
from torch.utils.data import DataLoader

from lighten import Prune, shrink
from lighten.errors import UserError
from lighten.pruning import plan_pruning
from lighten.utils.clone import clone, fix_weights_


def masked_by(layer):
    """A mask in the way of ``torch.nn.utils.prune``: each filter keeps most of its weights."""
    return prune.random_unstructured(layer, "weight", 0.3)


class Causal(nn.Conv1d):
    """A convolution under a mask, as PixelCNN and autoregressive networks write it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        mask = torch.ones_like(self.weight)
        mask[..., self.kernel_size[0] // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv1d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


class Scaled(nn.Linear):
    """A layer whose weight is learned up to a scale for each node and one for each input."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.rows, self.columns = nn.Parameter(torch.rand(outputs, 1)), nn.Parameter(torch.rand(inputs))

    def forward(self, x):
        return F.linear(x, self.weight * self.rows * torch.exp(0 * self.columns) * self.columns, self.bias)


class Standardized(nn.Conv1d):
    """A convolution whose filters have mean zero: which inputs they read shows in all of a filter."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return F.conv1d(x, weight / weight.std((1, 2), keepdim=True), self.bias, self.stride, self.padding)


def convolutions(make):
    torch.manual_seed(0)
    return Net(
        lambda s, x: s.head(F.relu(s.c(F.relu(s.b(F.relu(s.a(x)))))).mean(-1)),
        a=make(nn.Conv1d(3, 8, 3, padding=1)), b=make(nn.Conv1d(8, 8, 3, padding=1)),
        c=make(nn.Conv1d(8, 12, 3, padding=1)), head=nn.Linear(12, 2),
    ).eval()  # fmt: skip


KINDS = {
    "weight_norm": P.weight_norm,
    "spectral_norm": P.spectral_norm,
    "hooked weight_norm": hooked_weight_norm,
    "hooked spectral_norm": hooked_spectral_norm,
    "prune's mask": masked_by,
}


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_masks_of_pytorch(kind):
    model, x = convolutions(KINDS[kind]), torch.randn(2, 3, 10)
    plan = assert_right(model, x)
    assert {layer: plan.widths[layer] for layer in "abc"} == {"a": (8, 4), "b": (8, 4), "c": (12, 6)}
    small = shrink(model, plan)
    assert (small.b.in_channels, small.b.out_channels, small.b.weight.shape) == (4, 4, (4, 4, 3))
    again = assert_right(small, x)
    assert again.widths["c"] == (6, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_type(dtype):
    model = convolutions(P.weight_norm).to(dtype)
    assert plan_pruning(model, torch.randn(2, 3, 10).to(dtype), 0.5).widths["c"] == (12, 6)


def test_vectors_of_a_spectral_norm_are_cut_and_not_iterated():
    """As asking for the weight in training mode does."""
    model, example = convolutions(P.spectral_norm).train(), torch.randn(2, 3, 9)
    plan = plan_pruning(model, example, 0.5)
    known = {name: value.clone() for name, value in model.named_buffers()}
    cuts = {slot.tensor: cut for cut in plan.cuts for slot in cut.slots if slot.tensor in known}
    small = shrink(model, plan)
    assert small.training
    assert cuts
    for name, value in small.named_buffers():
        kept = [i for i in range(len(known[name])) if name not in cuts or i not in cuts[name].removed]
        assert torch.equal(value, known[name][kept]), name


def test_a_mask_in_the_forward():
    model = net(
        lambda s, x: s.head(F.relu(s.b(F.relu(s.a(x)))).mean(-1)),
        a=Causal(3, 8, 3, padding=1), b=Causal(8, 8, 5, padding=2), head=nn.Linear(8, 2),
    )  # fmt: skip
    plan = assert_right(model, torch.randn(2, 3, 10))
    assert plan.widths == {"a": (8, 4), "b": (8, 4), "head": (2, 2)}
    assert shrink(model, plan).b.mask.shape == (4, 4, 5)


def test_scales_go_with_the_channels_of_a_weight():
    model = net(
        lambda s, x: s.head(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(4, 6), b=Scaled(6, 8), head=nn.Linear(8, 2)
    )
    plan = assert_right(model, torch.randn(2, 4))
    small = shrink(model, plan)
    assert (small.b.rows.shape, small.b.columns.shape) == ((4, 1), (3,))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("norm", [P.weight_norm, hooked_weight_norm], ids=["parametrized", "hooked"])
def test_transposed_convolutions_norm_their_inputs(norm):
    """Weight norm's size is that of a row, which in a transposed convolution is an input."""
    model = net(
        lambda s, x: s.head(F.relu(s.b(F.relu(s.a(x)))).mean(-1)),
        a=norm(nn.Conv1d(3, 8, 3)), b=norm(nn.ConvTranspose1d(8, 6, 4, 2)), head=nn.Linear(6, 2),
    )  # fmt: skip
    assert assert_right(model, torch.randn(2, 3, 10)).widths == {"a": (8, 4), "b": (6, 3), "head": (2, 2)}


def test_a_filter_that_depends_on_all_its_inputs_keeps_them():
    model = net(
        lambda s, x: s.head(F.relu(s.b(F.relu(s.a(x)))).mean(-1)),
        a=nn.Conv1d(3, 8, 3), b=Standardized(8, 6, 3), head=nn.Linear(6, 2),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"b its weight is computed in the forward"):
        plan_pruning(model, torch.randn(2, 3, 10), 0.5)


def test_layers_are_called_by_their_names():
    model, x = convolutions(P.weight_norm), torch.randn(2, 3, 10)
    groups, frozen = groups_of(model, x, exclude=["b"])
    assert list(groups) == ["a", "c"]
    assert frozen["b"] == "is excluded"


def test_filters_are_scored_by_what_they_compute():
    """Two networks of equal weights lose the same filters, whatever length the directions have."""
    normed = convolutions(P.weight_norm)
    with torch.no_grad():
        for layer in (normed.a, normed.b, normed.c):
            layer.parametrizations.weight.original0.uniform_(0.2, 3)
            layer.parametrizations.weight.original1.mul_(torch.rand(layer.out_channels, 1, 1) * 9 + 0.1)
    plain, x = clone(normed), torch.randn(2, 3, 10)
    fix_weights_(plain)
    for score in ("fpgm", "magnitude"):
        rows = [plan_pruning(model, x, 0.5, score=score).groups for model in (normed, plain)]
        assert [row.kept for row in rows[0]] == [row.kept for row in rows[1]]


class Own(L.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, index):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


@pytest.mark.filterwarnings(
    "ignore:.*is deprecated", "ignore:.*does not have many workers", "ignore:.*logging interval"
)
@pytest.mark.parametrize("kind", ["weight_norm", "hooked spectral_norm"])
def test_a_fit_that_cuts_ends_as_one_that_masks(kind, tmp_path):
    ends = []
    for live in (False, True):
        module = Own(convolutions(KINDS[kind]))
        module.double().train()
        data = torch.randn(24, 3, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        callback = Prune(0.5, begin=0.0, end=0.6, live=live, cuts=2)
        trainer = L.Trainer(
            max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, precision="64-true",
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=3))
        assert module.network.b.weight.shape[0] == 4 or not live
        small = shrink(module, callback.plan).eval()
        ends.append(small(data))
    assert (ends[0] - ends[1]).abs().max() <= 1e-9 * ends[0].abs().max()

"""Attributes that a forward reads as sizes follow the cut."""

import re

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from pruning_nets import assert_right
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import Prune, UserError, load, mask_, plan_pruning, save, shrink
from lighten.pruning import Plan
from lighten.utils.clone import clone

HEADS, SIZE = 4, 6
WIDTH = HEADS * SIZE


class Options:
    """What a config is: plain attributes that several modules read."""

    def __init__(self):
        self.heads, self.width = HEADS, WIDTH


class Attention(nn.Module):
    """Attention whose forward is given: how it comes to its sizes is what differs."""

    def __init__(self, attend, options):
        super().__init__()
        self.heads, self.size, self.width = HEADS, SIZE, WIDTH
        self.parts, self.options = [WIDTH, WIDTH, WIDTH], options
        self.settings = {"heads": HEADS, "name": "own"}
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.register_buffer("index", torch.arange(25).reshape(5, 5) % 9)
        self.attend = attend

    def forward(self, x):
        return self.out(self.attend(self, x))


class Net(nn.Module):
    """Two blocks between linear layers."""

    def __init__(self, attend):
        super().__init__()
        torch.manual_seed(0)
        options = Options()
        self.start, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = nn.ModuleList(Attention(attend, options) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.up, self.down = (nn.ModuleList(nn.Linear(*n) for _ in range(2)) for n in ((WIDTH, 32), (32, WIDTH)))

    def forward(self, x):
        x = self.start(x)
        for at in range(2):
            x = x + self.attention[at](self.norms[2 * at](x))
            x = x + self.down[at](F.gelu(self.up[at](self.norms[2 * at + 1](x))))
        return self.head(x.mean(1))


def fused(q, k, v, *shape):
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*shape)


def by_attributes(m, x):
    b, n, _ = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, m.heads, m.size).permute(2, 0, 3, 1, 4)
    return fused(q, k, v, b, n, m.heads * m.size)


def by_shape(m, x):
    b, n, c = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, m.heads, c // m.heads).permute(2, 0, 3, 1, 4).unbind(0)
    return fused(q, k, v, b, n, c)


def by_one_width(m, x):
    b, n, _ = x.shape
    assert x.shape[-1] == m.width
    q, k, v = (y.view(b, n, m.heads, -1).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
    return fused(q, k, v, b, n, m.width)


def by_config(m, x):
    q, k, v = (y.unflatten(-1, (m.options.heads, -1)).transpose(1, 2) for y in m.qkv(x).chunk(3, dim=-1))
    return fused(q, k, v, *x.shape[:-1], -1)


def by_a_dict(m, x):
    q, k, v = (y.unflatten(-1, (m.settings["heads"], -1)).transpose(1, 2) for y in m.qkv(x).chunk(3, dim=-1))
    return fused(q, k, v, *x.shape[:-1], -1)


def by_parts(m, x):
    q, k, v = (y.view(*y.shape[:2], -1, m.size).transpose(1, 2) for y in m.qkv(x).split(m.parts, dim=-1))
    return fused(q, k, v, *x.shape[:2], -1)


def by_slices(m, x):
    y, inner = m.qkv(x), m.heads * m.size
    q, k, v = y[..., :inner], y[..., inner : 2 * inner], y[..., -inner:]
    q, k, v = (t.view(*t.shape[:2], m.heads, m.size).transpose(1, 2) for t in (q, k, v))
    return fused(q, k, v, *x.shape[:2], -1)


def with_a_table(m, x):
    b, n, _ = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, m.heads, m.size).permute(2, 0, 3, 1, 4)
    bias = m.table[m.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
    odds = ((m.size**-0.5 * q) @ k.transpose(-2, -1) + bias).softmax(-1)
    return (odds @ v).transpose(1, 2).reshape(b, n, m.heads * m.size)


def with_normed_heads(m, x):
    b, n, _ = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, m.heads, m.size).permute(2, 0, 3, 1, 4)
    return fused(F.normalize(q, dim=-1), F.layer_norm(k, (m.size,)), v, b, n, m.heads * m.size)


def with_a_literal(m, x):
    q, k, v = m.qkv(x).view(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4)
    return fused(q, k, v, *x.shape[:2], 24)


STYLES = {
    by_attributes: {"heads": 2},
    by_shape: {"heads": 2},
    by_one_width: {"heads": 2, "width": WIDTH // 2},
    by_config: {"options.heads": 2},
    by_a_dict: {"settings.heads": 2},
    by_parts: {"parts.0": WIDTH // 2, "parts.1": WIDTH // 2, "parts.2": WIDTH // 2},
    by_slices: {"heads": 2},
    with_a_table: {"heads": 2},
    with_normed_heads: {"heads": 2},
}


@pytest.mark.parametrize("attend", STYLES, ids=lambda f: f.__name__)
def test_heads_and_width_go_however_attention_is_written(attend):
    model, x = Net(attend).double().eval(), torch.randn(2, 5, 5, dtype=torch.float64)
    plan = assert_right(model, x)
    assert {group.width_after / group.width_before for group in plan.groups} == {0.5}
    assert plan.saved["macs"] > 0.65
    assert {plan.widths[f"attention.{at}.qkv"] for at in range(2)} == {(3 * WIDTH, 3 * WIDTH // 2)}
    expected = {f"attention.{at}.{name}": after for at in range(2) for name, after in STYLES[attend].items()}
    assert {name: after for name, (_, after) in plan.attributes.items()} == expected
    small, masked = shrink(model, plan), clone(model)
    mask_(masked, plan)
    other = torch.randn(3, 5, 5, dtype=torch.float64)
    assert (small(other) - masked(other)).abs().max() < 1e-12
    attention = model.attention[0]
    assert attention.heads == attention.options.heads == attention.settings["heads"] == HEADS
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("attend", [by_shape, by_one_width], ids=lambda f: f.__name__)
@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize(("amount", "target"), [(0.3, "channels"), (0.6, "macs")])
def test_a_width_stays_in_proportion_to_its_heads(attend, scope, amount, target):
    model, x = Net(attend).eval(), torch.randn(2, 5, 5)
    plan = plan_pruning(model, x, amount, scope=scope, target=target)
    kept = {group.name: group.width_after for group in plan.groups}
    assert kept["start"] == SIZE * kept["attention.0.qkv"] == SIZE * kept["attention.1.qkv"]
    assert shrink(model, plan).attention[0].heads == kept["attention.0.qkv"]


def test_heads_may_differ_from_block_to_block_where_nothing_forbids_it():
    model = Net(by_attributes).eval()
    with torch.no_grad():
        model.attention[0].qkv.weight[:18] *= 1e-3
        model.attention[0].qkv.weight[WIDTH : WIDTH + 18] *= 1e-3
        model.attention[0].qkv.weight[2 * WIDTH : 2 * WIDTH + 18] *= 1e-3
    plan = plan_pruning(model, torch.randn(2, 5, 5), 0.3, scope="global", score="magnitude")
    small = shrink(model, plan)
    assert small.attention[0].heads == 1
    assert small.attention[1].heads > 1


def test_a_literal_keeps_heads_and_width_and_is_named():
    plan = plan_pruning(Net(with_a_literal).eval(), torch.randn(2, 5, 5), 0.5)
    assert [group.name for group in plan.groups if "up" in group.name] == ["up.0", "up.1"]
    assert re.match(r"cannot be cut.*shape '\[2, 5, 3, 4, 6\]' is invalid", plan.frozen["attention.0.qkv"])
    assert not plan.attributes


def reads_in_two_ways(m, x):
    """The hidden width and the head's size, as it happens both six, from one attribute."""
    q, k, v = m.qkv(x).view(*x.shape[:2], 3, -1, m.size).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1)
    return y * y.new_ones(4 * m.size)


def by_a_loop(m, x):
    q, k, v = m.qkv(x).chunk(3, -1)
    places = [slice(head * m.size, (head + 1) * m.size) for head in range(m.heads)]
    return torch.cat([F.scaled_dot_product_attention(q[..., at], k[..., at], v[..., at]) for at in places], -1)


def test_heads_that_a_loop_counts_stay():
    plan = plan_pruning(Net(by_a_loop).eval(), torch.randn(2, 5, 5), 0.5)
    assert not plan.attributes
    assert plan.frozen["attention.0.qkv"].startswith("cannot be cut")
    assert plan.widths["start"] == (WIDTH, WIDTH // 2)


def test_an_attribute_that_is_read_in_two_ways_stays_and_is_named():
    plan = plan_pruning(Net(reads_in_two_ways).eval(), torch.randn(2, 5, 5), 0.5)
    assert not plan.attributes
    assert "attention.0.size in two ways" in plan.frozen["attention.0.qkv"]
    assert plan.widths["start"] == (WIDTH, WIDTH // 2)


def test_pruned_twice_is_pruned_once():
    model, x = Net(by_attributes).double().eval(), torch.randn(2, 5, 5, dtype=torch.float64)
    first = plan_pruning(model, x, 0.25)
    half = shrink(model, first)
    again = shrink(half, plan_pruning(half, x, 0.3))
    whole = again.lighten_record.plan
    assert whole.attributes["attention.0.heads"] == (HEADS, again.attention[0].heads)
    other = torch.randn(3, 5, 5, dtype=torch.float64)
    assert (shrink(model, whole)(other) - again(other)).abs().max() < 1e-12


def test_the_plan_prints_the_attributes_that_change():
    text = str(plan_pruning(Net(by_parts).eval(), torch.randn(2, 5, 5), 0.5))
    assert "Attributes that follow" in text
    assert "attention.0.parts.0 24 -> 12 and 5 more" in " ".join(text.split())


def test_a_model_with_other_attributes_is_refused():
    model, x = Net(by_attributes).eval(), torch.randn(2, 5, 5)
    plan = plan_pruning(model, x, 0.5)
    model.attention[1].heads = 3
    with pytest.raises(UserError, match=r"does not match the plan: attention\.1\.heads is 3, expected 4"):
        shrink(model, plan)


class Composite(nn.Module):
    """A function of PyTorch that is many operators, and a size of what it puts out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.up, self.head = nn.Linear(5, 8), nn.Linear(8, 16), nn.Linear(16, 3)
        self.weight, self.out = nn.Parameter(torch.randn(24, 8)), nn.Linear(8, 8)

    def forward(self, x):
        x = self.start(x).transpose(0, 1)
        y, odds = F.multi_head_attention_forward(
            x, x, x, 8, 2, self.weight, None, None, None, False, 0.0, self.out.weight, self.out.bias
        )
        rows = y.transpose(0, 1).reshape(y.shape[1] * y.shape[0], y.shape[-1])
        return self.head(self.up(rows)).view(y.shape[1], y.shape[0], 3) * odds.shape[-1]


def test_sizes_of_what_a_function_of_many_operators_puts_out_do_no_harm():
    plan = assert_right(Composite().eval(), torch.randn(2, 5, 5))
    assert plan.widths["up"] == (16, 8)


def test_an_example_may_be_a_view_and_a_forward_that_takes_no_tags_is_said():
    batch = torch.randn(4, 5, 5)
    assert plan_pruning(Net(by_shape).eval(), batch[:2], 0.5).attributes

    def strict(m, x):
        assert type(m.heads) is int
        return by_attributes(m, x)

    with pytest.warns(UserWarning, match="the sizes that Net reads from its attributes cannot be followed"):
        plan = plan_pruning(Net(strict).eval(), batch, 0.5)
    assert not plan.attributes
    assert "attention.0.qkv" in plan.frozen


class Task(L.LightningModule):
    """Fits the network to noise."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_prunes_heads_and_width_and_a_checkpoint_knows_them(tmp_path):
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(32, 5, 5), torch.randint(3, (32,))), batch_size=4)
    prune = Prune(0.5, end=0.6)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, callbacks=[prune], default_root_dir=tmp_path, **options)
    module = Task(Net(by_shape))
    trainer.fit(module, data)
    assert prune.plan.attributes["attention.1.heads"] == (HEADS, 2)
    small = shrink(module, prune.plan).eval()
    x = torch.randn(3, 5, 5)
    assert (small.net(x) - module.eval().net(x)).abs().max() < 1e-5
    state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["callbacks"]
    plans = [Plan.from_json(value["plan"]) for value in state.values() if "plan" in value]
    assert [plan.attributes for plan in plans] == [prune.plan.attributes]


def test_the_shape_of_one_channel_stays_when_that_channel_goes():
    """As BART's positions, which count the tokens by the last channel of their embeddings."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.places, self.head = nn.Linear(5, 8), nn.Embedding(10, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.a(x)
            rows, length = y[:, :, -1].shape
            return self.head(y + self.places(torch.arange(length).expand(rows, -1)))

    model = Positions().eval()
    model.a.weight.data[-1] = model.places.weight.data[:, -1] = 0
    plan = assert_right(model, torch.rand(2, 4, 5))
    assert plan.widths["a"] == (8, 4)
    assert 7 not in plan.groups[0].kept


def test_a_folder_keeps_them_and_a_fresh_model_takes_them(tmp_path):
    model, x = Net(by_config).eval(), torch.randn(2, 5, 5)
    small = shrink(model, plan_pruning(model, x, 0.5))
    save(small, tmp_path / "small")
    assert "attention.0.options.heads" in (tmp_path / "small" / "compression.json").read_text()
    again = load(tmp_path / "small", model=Net(by_config)).eval()
    assert again.attention[0].options.heads == 2
    assert torch.equal(again(x), small(x))

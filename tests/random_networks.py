"""Networks that nobody drew: programs of a few instructions, written out as the source of a module."""

import linecache
import random
from dataclasses import dataclass, fields, is_dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from lighten.utils.inputs import as_call

SAMPLES, SIDE = 8, 6


class NormAct(nn.BatchNorm2d):
    """A norm that applies its activation too."""

    def forward(self, x):
        return torch.relu(super().forward(x))


class Mix(nn.Module):
    """Functions alone: a sum and its ReLU."""

    def forward(self, a, b):
        return F.relu(a + b)


class Tail(nn.Module):
    """Functions alone: pooled, rectified."""

    def forward(self, x):
        return F.relu(F.max_pool2d(x, 2))


class Residual(nn.Module):
    """A block that training skips now and then, as its share says."""

    def __init__(self, width, inner, share=0.0):
        super().__init__()
        self.a, self.b, self.share = nn.Conv2d(width, inner, 3, padding=1), nn.Conv2d(inner, width, 1), share
        self.norm, self.last, self.relu = nn.BatchNorm2d(inner), nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x):
        if self.training and torch.rand(()) < self.share:
            return x
        return self.relu(self.last(self.b(self.relu(self.norm(self.a(x))))) + x)


@dataclass
class Output:
    logits: Tensor
    features: Tensor


def collect(module, args, output):
    """Keep what a module computes: a forward hook."""
    module.collected = output


class Program:
    """A module's source, drawn by a seed; ``shapes`` are those of the tensors that live, without the batch."""

    def __init__(self, seed):
        self.one, self.init, self.lines, self.shapes, self.count = random.Random(seed), [], [], {}, 0
        self.shared, self.linears = {}, []

    def one_of(self, *options):
        return self.one.choice(options)

    def name(self, letter):
        self.count += 1
        return f"{letter}{self.count}"

    def module(self, source):
        name = self.name("m")
        self.init.append(f"self.{name} = {source}")
        return f"self.{name}"

    def again(self, source):
        """Return a module that was made already where there is one of this source, or a new one."""
        known = self.shared.get(source)
        if known is None or self.one_of("again", "new") == "new":
            known = self.shared[source] = self.module(source)
        return known

    def put(self, shape, source):
        name = self.name("v")
        self.lines.append(f"{name} = {source}")
        self.shapes[name] = tuple(shape)
        return name

    def living(self, rank, *, like=None, spatial=None):
        """Return the tensors of this rank, the latest first."""
        names = [n for n, shape in self.shapes.items() if len(shape) == rank]
        names = [n for n in names if like is None or (self.shapes[n] == self.shapes[like] and n != like)]
        return [n for n in reversed(names) if spatial is None or self.shapes[n][1:] == self.shapes[spatial][1:]]

    def width(self):
        return self.one_of(4, 6, 8)


def conv(p, x):
    c, h, w = p.shapes[x]
    kind = p.one_of("3", "1", "strided", "grouped", "transposed", "twice", "weight norm")
    d, bias = p.width(), p.one_of(True, False)
    if kind == "transposed" and h <= SIDE:
        layer = p.module(f"nn.ConvTranspose2d({c}, {d}, 2, stride=2)")
        return p.put((d, 2 * h, 2 * w), f"{layer}({x})")
    if kind == "twice":
        layer = p.module(f"nn.Conv2d({c}, {c}, 3, padding=1)")
        return p.put((c, h, w), f"{layer}({layer}({x}))")
    if kind == "weight norm":
        layer = p.module(f"nn.utils.parametrizations.weight_norm(nn.Conv2d({c}, {d}, 1))")
        return p.put((d, h, w), f"{layer}({x})")
    if kind == "grouped":
        layer = p.module(f"nn.Conv2d({c}, {2 * c}, 3, padding=1, groups={c}, bias={bias})")
        return p.put((2 * c, h, w), f"{layer}({x})")
    if kind == "strided":
        layer = p.module(f"nn.Conv2d({c}, {d}, 3, stride=2, padding=1, bias={bias})")
        return p.put((d, (h + 1) // 2, (w + 1) // 2), f"{layer}({x})")
    side = int(kind) if kind.isdigit() else 1  # too large to be transposed
    layer = p.module(f"nn.Conv2d({c}, {d}, {side}, padding={side // 2}, bias={bias})")
    return p.put((d, h, w), f"{layer}({x})")


def chain(p, x):
    """A convolution, its norm and its ReLU, hooks on any of them."""
    c, h, w = p.shapes[x]
    d = p.width()
    layer = p.module(f"nn.Conv2d({c}, {d}, 3, padding=1, bias=False)")
    norm = p.again(f"nn.BatchNorm2d({d})")
    hooked = p.one_of(None, layer, norm)
    if hooked:
        p.init.append(f"{hooked}.register_forward_hook(collect)")
    return relu(p, p.put((d, h, w), f"{norm}({layer}({x}))"))


def norm(p, x):
    c = p.shapes[x][0]
    kind = p.one_of("BatchNorm2d", "NormAct", "group", "layer")
    if kind == "group":
        return p.put(p.shapes[x], f"{p.module(f'nn.GroupNorm(2, {c})')}({x})" if c % 2 == 0 else f"{x} * 0.5")
    if kind == "layer":
        return p.put(p.shapes[x], f"{p.module(f'nn.LayerNorm({c})')}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")
    source = "NormAct" if kind == "NormAct" else "nn.BatchNorm2d"
    return p.put(p.shapes[x], f"{p.again(f'{source}({c})')}({x})")


def relu(p, x):
    shared, in_place = p.again("nn.ReLU()"), p.again("nn.ReLU(inplace=True)")
    source = p.one_of(
        f"F.relu({x})", f"{shared}({x})", f"{x}.relu()", f"{in_place}({x})", f"F.relu(input={x}, inplace=True)",
        f"F.relu6({x})", f"torch.relu({x})",
    )  # fmt: skip
    return p.put(p.shapes[x], source)


def activation(p, x):
    return p.put(p.shapes[x], p.one_of(f"F.gelu({x})", f"torch.sigmoid({x})", f"F.hardswish({x})", f"torch.tanh({x})"))


def add(p, x):
    others = p.living(len(p.shapes[x]), like=x)
    if not others:
        return p.put(p.shapes[x], f"{x} + {x}")
    y = p.one_of(*others)
    kind = p.one_of("+", "mix", "add", "in place", "rectified")
    if kind == "in place":
        p.lines.append(f"{x} += {y}")
        return x
    sources = {
        "+": f"{x} + {y}", "add": f"torch.add({x}, other={y})", "rectified": f"F.relu({x} + {y})",
        "mix": f"{p.again('Mix()')}({x}, {y})",
    }  # fmt: skip
    return p.put(p.shapes[x], sources[kind])


def cat(p, x):
    y = p.one_of(*p.living(3, spatial=x))
    c = p.shapes[x][0] + p.shapes[y][0]
    if c > 24:
        return add(p, x)
    return p.put(
        (c, *p.shapes[x][1:]),
        f"torch.cat([{x}, {y}], 1)" if p.one_of(True, False) else f"torch.cat(tensors=({x}, {y}), dim=1)",
    )


def pool(p, x):
    c, h, w = p.shapes[x]
    kind = p.one_of("max", "average", "tail", "adaptive")
    if h < 2 or kind == "adaptive":
        return p.put((c, 2, 2), f"F.adaptive_avg_pool2d({x}, 2)")
    sources = {
        "max": f"{p.again('nn.MaxPool2d(2)')}({x})", "average": f"F.avg_pool2d({x}, 2)",
        "tail": f"{p.again('Tail()')}({x})",
    }  # fmt: skip
    return p.put((c, h // 2, w // 2), sources[kind])


def upsample(p, x):
    c, h, w = p.shapes[x]
    if h > SIDE:
        return pool(p, x)
    return p.put((c, 2 * h, 2 * w), f"F.interpolate({x}, scale_factor=2, mode={p.one_of('nearest', 'bilinear')!r})")


def dropout(p, x):
    kinds = [f"F.dropout({x}, 0.1, self.training)", f"{p.again('nn.Dropout(0.1, inplace=True)')}({x})"]
    kinds += [f"{p.again('nn.Dropout2d(0.1)')}({x})"] if len(p.shapes[x]) == 3 else []
    return p.put(p.shapes[x], p.one_of(*kinds))


def residual(p, x):
    c = p.shapes[x][0]
    block = p.module(f"Residual({c}, {p.width()}, {p.one_of(0.0, 0.3)})")
    return p.put(p.shapes[x], f"{block}({x})")


def gate(p, x):
    c = p.shapes[x][0]
    layer = p.module(f"nn.Conv2d({c}, {c}, 1)")
    return p.put(p.shapes[x], f"{x} * torch.sigmoid({layer}(F.adaptive_avg_pool2d({x}, 1)))")


def pad(p, x):
    c, h, w = p.shapes[x]
    return p.put((c, h + 1, w + 1), f"F.pad({x}, (0, 1, 0, 1))") if h <= SIDE else pool(p, x)


def vector(p, x):
    c, h, w = p.shapes[x]
    kind = p.one_of("mean", "pool", "flatten", "reshape")
    if kind in ("flatten", "reshape") and c * h * w <= 200:
        return p.put((c * h * w,), f"{x}.flatten(1)" if kind == "flatten" else f"{x}.reshape({x}.shape[0], -1)")
    return p.put((c,), f"{x}.mean((2, 3))" if kind == "mean" else f"torch.flatten(F.adaptive_avg_pool2d({x}, 1), 1)")


def linear(p, x):
    (c,) = p.shapes[x]
    kind = p.one_of("new", "twice", "read elsewhere")
    if kind == "read elsewhere" and any(width == c for _, width, _ in p.linears):
        layer, _, d = next(entry for entry in p.linears if entry[1] == c)
        return p.put((d,), f"F.linear({x}, {layer}.weight)")
    if kind == "twice":
        layer = p.module(f"nn.Linear({c}, {c})")
        return p.put((c,), f"{layer}({layer}({x}))")
    d = p.width()
    layer = p.module(f"nn.Linear({c}, {d})")
    p.linears.append((layer, c, d))
    return p.put((d,), f"{layer}({x})")


def vector_norm(p, x):
    (c,) = p.shapes[x]
    return p.put((c,), f"{p.again(p.one_of(f'nn.BatchNorm1d({c})', f'nn.LayerNorm({c})'))}({x})")


def training_only(p, x):
    """What a forward does in training mode besides."""
    shape = p.shapes[x]
    kind = p.one_of("noise", "relu", "layer", "sum")
    p.lines.append("if self.training:")
    if kind == "noise":
        p.lines.append(f"    {x} = {x} + 0.01 * torch.randn_like({x})")
    elif kind == "relu":
        p.lines.append(f"    self.low = F.relu({x}).min().detach()")
    elif kind == "sum":
        p.lines.append(f"    self.twice = ({x} + {x}).detach()")
    else:
        layer = f"nn.Conv2d({shape[0]}, 4, 1)" if len(shape) == 3 else f"nn.Linear({shape[0]}, 4)"
        p.lines.append(f"    self.side = F.relu({p.module(layer)}({x}))")
    return x


def keep(p, x):
    """A tensor is kept in an attribute."""
    p.lines.append(p.one_of(f"self.features = {x}", f"self.seen[{x!r}] = {x}", f"self.mean = {x}.mean().detach()"))
    return x


IMAGE = {
    f.__name__: f
    for f in (conv, chain, norm, relu, activation, add, cat, pool, upsample, dropout, residual, gate, pad, vector)
}
VECTOR = {f.__name__: f for f in (linear, vector_norm, relu, activation, add, dropout)}
ANY = {f.__name__: f for f in (training_only, keep)}


@dataclass(frozen=True)
class Drawn:
    """A network that was drawn: its source, and the shapes of its arguments by name, without the batch."""

    source: str
    arguments: tuple[tuple[str, tuple[int, ...]], ...]
    keywords: bool
    seed: int

    def build(self):
        """Return the network, in eval mode, with norms that have seen data; the same at every call."""
        namespace = dict(globals())
        file = f"<network {abs(hash(self.source))}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        exec(compile(self.source, file, "exec"), namespace)
        torch.manual_seed(self.seed)
        model = namespace["Network"]()
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
            norm.momentum = 1.0
        args, kwargs = as_call(self.inputs(0))
        with torch.no_grad():
            model(*args, **kwargs)
        for norm in norms:
            norm.momentum = 0.1
        return model.eval()

    def inputs(self, seed):
        """Return a batch as an ``example_input``."""
        generator = torch.Generator().manual_seed(seed)
        tensors = [
            torch.randn(SAMPLES, *shape, generator=generator)
            if shape != TOKENS
            else torch.randint(0, 12, (SAMPLES, *shape), generator=generator)
            for _, shape in self.arguments
        ]
        if self.keywords:
            return dict(zip([name for name, _ in self.arguments], tensors, strict=True))
        return tuple(tensors)


TOKENS = (5,)
"""The shape of token numbers."""

INPUTS = {
    "image": ((("x", (3, SIDE, SIDE)),), False),
    "images": ((("x", (3, SIDE, SIDE)), ("y", (4, SIDE, SIDE))), False),
    "keywords": ((("image", (3, SIDE, SIDE)), ("features", (7,))), True),
    "tokens": ((("image", (3, SIDE, SIDE)), ("ids", TOKENS)), True),
}


@st.composite
def networks(draw, most=10):
    """Draw a network of a few instructions: its seed says which, so that neighbours are unlike each other."""
    return drawn_of(draw(st.integers(1, most)), draw(st.integers(0, 2**32)))


def drawn_of(instructions, seed):
    """Return the network of this seed."""
    p = Program(seed)
    arguments, keywords = INPUTS[p.one_of(*INPUTS)]
    for name, shape in arguments:
        if shape == TOKENS:
            table = p.module("nn.Embedding(12, 6)")
            p.put((6,), f"{table}({name}).mean(1)")
        elif len(shape) == 3:
            p.put((8, SIDE, SIDE), f"{p.module(f'nn.Conv2d({shape[0]}, 8, 3, padding=1)')}({name})")
        else:
            p.put((8,), f"{p.module(f'nn.Linear({shape[0]}, 8)')}({name})")
    for _ in range(instructions):
        rank = p.one_of(*sorted({len(shape) for shape in p.shapes.values()}, reverse=True))
        instruction = p.one_of(*(IMAGE if rank == 3 else VECTOR), *ANY)
        ({**IMAGE, **ANY} if rank == 3 else {**VECTOR, **ANY})[instruction](p, p.one_of(*p.living(rank)[:4]))
    returned = returns(p)
    source = "\n".join(
        [
            "class Network(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            "        self.seen = {}",
            *(f"        {line}" for line in p.init),
            f"    def forward(self, {', '.join(name for name, _ in arguments)}):",
            *(f"        {line}" for line in [*p.lines, *returned]),
            "",
        ]
    )
    return Drawn(source, arguments, keywords, seed)


def returns(p):
    """Return the lines at a forward's end: heads of the latest tensors, and what is returned of them."""
    features = p.one_of(*(p.living(3) + p.living(1))[:6])
    flat = [p.put((p.shapes[x][0],), f"{x}.mean((2, 3))") for x in p.living(3)[:1]] + p.living(1)[:1]
    joined = p.put((sum(p.shapes[x][0] for x in flat),), f"torch.cat([{', '.join(flat)}], 1)")
    head = p.put((3,), f"{p.module(f'nn.Linear({p.shapes[joined][0]}, 3)')}({joined})")
    form = p.one_of("tensor", "tuple", "dict", "dataclass", "auxiliary")
    if form == "auxiliary":
        aux = p.module(f"nn.Linear({p.shapes[joined][0]}, 3)")
        return ["if self.training:", f"    return {head}, {aux}({joined})", f"return {head}"]
    forms = {
        "tensor": head, "tuple": f"{head}, {features}", "dict": f"{{'logits': {head}, 'features': {features}}}",
        "dataclass": f"Output({head}, {features})",
    }  # fmt: skip
    return [f"return {forms[form]}"]


def tensors_of(output):
    """Return the tensors of an output, whatever holds them, in their order."""
    if isinstance(output, Tensor):
        return [output]
    if is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return [x for part in parts for x in tensors_of(part)]

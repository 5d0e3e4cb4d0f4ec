"""Configs of pruned ``transformers`` models."""

import copy
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from lighten.pruning.check import difference
from lighten.pruning.plan import Plan

WIDTHS = (
    "hidden_size", "hidden_sizes", "dim", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "head_dim",
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "hidden_dim", "n_inner", "d_ff",
    "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "num_attention_heads", "num_key_value_heads", "n_heads", "n_head",
    "num_heads", "num_kv_heads", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
"""Keys that surely name widths: they follow them whether or not that shows. Others only change where it helps."""
UNSET = ("head_dim", "n_inner", "num_key_value_heads", "intermediate_size")
"""Keys that many families read where they are set, and else compute from others."""
MAX_TRIED = 64
"""Configs that are tried at most."""
MAX_PROVEN = 4
"""Those of them whose models are run, at most."""
MAX_LISTS = 16
"""Values that are tried of a list, as of the widths of stages."""
Settings = Mapping[str, Any]
Shapes = Mapping[str, torch.Size]


def follow_config_(small: nn.Module, plan: Plan) -> None:
    """Give a cut model of ``transformers`` a config that builds its very shapes and computes the same.

    Its modules then hold the configs and the integers that the library itself gives them. Where its family has no words
    for these widths (such as attention heads without the hidden width, in BERT), the config is left as it is and a
    warning says so; :func:`lighten.load` rebuilds such a model from the plan.
    """
    config = getattr(small, "config", None)
    if not hasattr(config, "to_dict") or not hasattr(small, "save_pretrained") or not plan.cuts:
        return
    says, what = "cannot say the widths of the cut model", "prune what the config names, every layer by the same share"
    choices = _choices(config, plan)
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    fitting = _fitting(choices, lambda s: _wrong(type(small), config, s, lambda found: _unlike(found, shapes)))
    for changes in itertools.islice(fitting, MAX_PROVEN):
        built = _proven(_changed(config, changes), small, plan)
        if built is not None:
            _take_over_(small, built)
            return
        says, what = "cannot say the widths of the cut model without changing a scale too", "exclude the embeddings"
    if plan.settings.get("scope", "uniform") != "uniform":
        cut = {(slot.tensor, slot.dim): len(c.removed) for c in plan.cuts for slot in c.slots}
        uniform = _fitting(choices, lambda s: _wrong(type(small), config, s, lambda found: _uneven(found, shapes, cut)))
        if next(uniform, None) is not None:
            what = 'plan with scope="uniform", whose widths it can say'
    warnings.warn(
        f"{type(config).__name__} {says}, so from_pretrained cannot read it; save it with lighten.save, or {what}",
        stacklevel=3,
    )


def _choices(config: Any, plan: Plan) -> dict[str, list[Any]]:
    """Return for each key of ``config`` the values that it may have now, likely ones first."""
    pairs = [*plan.widths.values(), *((g.width_before, g.width_after) for g in plan.groups)]
    after = Counter((before, left) for before, left in pairs if before != left)
    said = Counter((name.rpartition(".")[2], *pair) for name, pair in plan.attributes.items())
    choices: dict[str, list[Any]] = {}
    for key, value in config.to_dict().items():
        if isinstance(value, list) and value and all(type(v) is int for v in value):
            lists = itertools.product(*(_likely(v, key, after, said) for v in value))
            choices[key] = [list(found) for found in itertools.islice(lists, MAX_LISTS)]
        elif type(value) is int:
            choices[key] = _likely(value, key, after, said)
        elif value is None and key in UNSET:
            choices[key] = [None, *dict.fromkeys(left for _, left in after)]
    hidden, heads = (getattr(config, key, None) for key in ("hidden_size", "num_attention_heads"))
    if choices.get("head_dim", [None])[0] is None and isinstance(hidden, int) and isinstance(heads, int):
        choices["head_dim"] = [None, hidden // heads]
    return {key: values for key, values in choices.items() if len(values) > 1}


def _likely(
    value: int, key: str, after: Mapping[tuple[int, int], int], said: Mapping[tuple[str, int, int], int]
) -> list[int]:
    """Return what may have become of ``value``, as the plan says of such an attribute, or of a width or parts of it."""
    own = {left: times for (name, before, left), times in said.items() if (name, before) == (key, value)}
    same = {left: times for (before, left), times in after.items() if before == value}
    parts = {
        value // before * left: times
        for (before, left), times in after.items()
        if 1 < before < value and value % before == 0
    }
    if key not in WIDTHS:
        same = {value: max(same.values(), default=0) + 1, **same}
    ranked = [left for found in (own, same, {value: 0}, parts) for left in sorted(found, key=lambda v: -found[v])]
    return list(dict.fromkeys(left for left in ranked if left > 0))


def _fitting(choices: Mapping[str, list[Any]], wrong: Callable[[Settings], int | None]) -> Iterator[Settings]:
    """Yield settings with which nothing is ``wrong``: the first by changing whichever key helps, then those near it."""
    tried: dict[tuple[Any, ...], int | None] = {}

    def score(values: tuple[Any, ...]) -> int | None:
        key = tuple(map(repr, values))
        if key not in tried:
            tried[key] = wrong(dict(zip(choices, values, strict=True))) if len(tried) < MAX_TRIED else None
        return tried[key]

    def near(values: tuple[Any, ...], keys: int) -> Iterator[tuple[Any, ...]]:
        for places in itertools.combinations(range(len(values)), keys):
            for others in itertools.product(*([v for v in every[at] if v != values[at]] for at in places)):
                changed = dict(zip(places, others, strict=True))
                yield tuple(changed.get(at, value) for at, value in enumerate(values))

    every = list(choices.values())
    starts = (tuple(values[0] for values in every), tuple(values[-1] for values in every))
    for start in starts:
        best, least = start, score(start)
        while least != 0:
            better = next(
                (v for v in near(best, 1) if (s := score(v)) is not None and (least is None or s < least)), None
            )
            if better is None:
                break
            best, least = better, score(better)
        if least == 0:
            yield from (dict(zip(choices, v, strict=True)) for n in (0, 1, 2) for v in near(best, n) if score(v) == 0)


def _wrong(kind: type[nn.Module], config: Any, changes: Settings, count: Callable[[Shapes], int]) -> int | None:
    """Return what ``count`` says of the shapes that a config with these settings builds; ``None`` if it builds none."""
    try:
        with torch.device("meta"), torch.random.fork_rng():
            built = kind(_changed(config, changes))
        return count({name: tensor.shape for name, tensor in built.state_dict().items()})
    except Exception:  # whatever a config refuses
        return None


def _unlike(built: Shapes, shapes: Shapes) -> int:
    """Count the dimensions that are not as they must be."""
    if built.keys() != shapes.keys():
        return len(built.keys() ^ shapes.keys()) * 1_000
    return sum(a != b for name, shape in shapes.items() for a, b in zip(built[name], shape, strict=True))


def _uneven(built: Shapes, shapes: Shapes, removed: Mapping[tuple[str, int], int]) -> int:
    """Count the dimensions that shrink though nothing is cut there, or do not shrink though something is."""
    if built.keys() != shapes.keys():
        return len(built.keys() ^ shapes.keys()) * 1_000
    return sum(
        (built[name][dim] < size + removed.get((name, dim), 0)) != ((name, dim) in removed)
        for name, shape in shapes.items()
        for dim, size in enumerate(shape)
    )


def _changed(config: Any, changes: Settings) -> Any:
    """Return a copy of ``config`` with other settings; it may refuse one, such as a width that it computes."""
    changed = copy.deepcopy(config)
    named = config.to_dict()
    for key, value in changes.items():
        if value != named.get(key):
            setattr(changed, key, value)
    return changed


def _proven(config: Any, small: nn.Module, plan: Plan) -> nn.Module | None:
    """Return the model that ``config`` builds, with the weights of ``small``, if it computes the same."""
    try:
        with torch.random.fork_rng():
            built = type(small)(config)
        built.load_state_dict(small.state_dict())
    except Exception:  # whatever a config refuses
        return None
    for kind in dict.fromkeys(
        (torch.float32, next(small.parameters()).dtype)
    ):  # buffers, which are not loaded, may have been rounded
        for dtype, most in ((torch.float64, 1e-9), (torch.float32, 1e-6)):
            with suppress(Exception):  # some forwards cannot run in float64
                if difference(small, built.to(kind), plan.example, dtype=dtype) <= most:
                    return built
                break
    return None


def _take_over_(small: nn.Module, built: nn.Module) -> None:
    """Give modules the configs, and the integers they remember, of the model that the config builds."""
    own = dict(small.named_modules())
    for name, twin in built.named_modules():
        held = vars(own.get(name, twin))
        for key, value in vars(twin).items():
            numbers = type(value) is int and type(held.get(key)) is int
            if numbers or (hasattr(value, "to_dict") and hasattr(held.get(key), "to_dict") and key == "config"):
                held[key] = value

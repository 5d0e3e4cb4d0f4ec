"""Half of all channels by lighten and by others: ``python benchmarks/foreign_peers.py [NETWORK …] [--json PATH]``.

Each library prunes each network of ``NETWORKS`` in a process of its own: half of the channels of every group, and half
of the heads, by magnitude. Torch-Pruning is told of heads, and has its attributes set, as its examples do;
torch-kirigami (``pip install --no-deps --target FOLDER torch-kirigami==0.2.1``, with FOLDER in PYTHONPATH) finds its
candidates, and gets heads besides where there is an explicit attention, as in its example. All are judged alike, by
nothing that they say of themselves:

* ``proven``: the cut network runs forward and backward, saves half of the multiply-accumulates or more, and is equal in
  float64 to the uncut one with zeros where weights are gone, which are found by their values; norms over the width
  then take what is left.
* ``partial``: the same, but it saves less.
* ``not compared``: it runs and saves half, but its weights are not found in the uncut network's.
* ``wrong``: outputs of another shape or of other values.
* ``refused``: the library says so, by its own error, or that there is nothing to prune.
* ``crashed``: any other error, or a cut network that does not run. ``slow``: the time limit.
"""

import argparse
import contextlib
import copy
import json
import multiprocessing as mp
import os
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign_networks import build, import_libraries
from foreign_oracles import gap, tensors_of
from foreign_steps import EXACT, FLOAT_FILE, Survey
from rows import Row, add_row, command
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lighten import UserError, plan_pruning, shrink
from lighten.utils.machine import version_of

NETWORKS = {
    "convolutional": """torchvision/resnet18 torchvision/vgg11_bn torchvision/densenet121 torchvision/mobilenet_v2
        torchvision/efficientnet_b0 torchvision/regnet_x_400mf torchvision/shufflenet_v2_x0_5 timm/convnext_atto
        timm/repvgg_a0""",
    "ViT-like": """timm/deit_tiny_patch16_224 timm/vit_tiny_patch16_dinov3_qkvb timm/beit_base_patch16_224
        timm/mixer_s16_224 transformers/vit transformers/dinov2 transformers/clip_vision_model transformers/siglip""",
    "Swin-like": "torchvision/swin_t timm/swin_tiny_patch4_window7_224 transformers/swin transformers/swinv2",
    "encoders": "transformers/bert transformers/distilbert transformers/deberta-v2 transformers/wav2vec2",
    "decoders": "transformers/gpt2 transformers/llama transformers/phi3 transformers/qwen2 transformers/opt",
    "encoder-decoders": "transformers/t5 transformers/bart transformers/whisper",
}
KINDS = ("proven", "partial", "not compared", "wrong", "refused", "crashed", "slow")
PATIENCE = 4
"""How many times its processor time a network may take by the clock."""
HALF = 0.5
VISIBLE = 1e-4
"""What masking must change of the outputs for a comparison to say something, relative."""


class RefusedError(Exception):
    """The library says that it does not prune this network."""


def lighten(network: nn.Module, example: Any) -> nn.Module:
    """Return the network with half of all channels cut."""
    try:
        return shrink(network, plan_pruning(network, example, HALF, score="magnitude"))
    except UserError as error:
        raise RefusedError(str(error)) from error


def torch_pruning(network: nn.Module, example: Any) -> nn.Module:
    """Prune a copy as the library's examples for ViT, Swin and BERT do."""
    import torch_pruning as tp

    class Merging(tp.BasePruningFunc):
        """Swin's patch merging: each channel comes four times; after the library's example."""

        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            tp.prune_linear_out_channels(layer.reduction, idxs)
            return layer

        def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            four = [i + k * layer.dim for k in range(4) for i in idxs]
            tp.prune_linear_in_channels(layer.reduction, four)
            tp.prune_layernorm_out_channels(layer.norm, four)
            return layer

        def get_out_channels(self, layer: nn.Module) -> int:
            return layer.reduction.out_features

        def get_in_channels(self, layer: nn.Module) -> int:
            return layer.dim

    network = copy.deepcopy(network)
    heads = {layer: n for module in network.modules() for layer, n in _heads_of(module).items()}
    merging = {type(m) for m in network.modules() if type(m).__name__ == "SwinPatchMerging"}
    for module in network.modules():
        if type(module) in merging:
            module.dim = module.reduction.in_features // 4  # what the example reads; newer versions do not hold it
    inputs = example if isinstance(example, dict | Tensor) else list(example)
    more = {"root_module_types": [nn.modules.conv._ConvNd, nn.Linear, *merging]} if merging else {}
    pruner = tp.pruner.BasePruner(
        network, inputs, tp.importance.MagnitudeImportance(p=2), pruning_ratio=HALF,
        ignored_layers=_last(network, example), num_heads=dict(heads), prune_num_heads=not merging,
        prune_head_dims=bool(merging), head_pruning_ratio=HALF, **more,
        output_transform=lambda output: tensors_of(output)[0].sum(),
        customized_pruners={merge: Merging() for merge in merging},
    )  # fmt: skip
    pruner.step()
    for module in network.modules():
        for layer in _heads_of(module):
            if layer not in heads:
                continue
            after, fused = pruner.num_heads[layer], 3 if layer is getattr(module, "qkv", None) else 1
            size = layer.out_features // (fused * max(after, 1))
            values = {"head_dim": size, "attention_head_size": size}
            values |= dict.fromkeys(
                ("attn_dim", "all_head_size", "embed_dim", "inner_dim"), layer.out_features // fused
            )
            if layer is next(iter(_heads_of(module))):
                values |= dict.fromkeys(HEADS, after)
            else:
                values["num_key_value_groups"] = getattr(module, "q_proj", layer).out_features // layer.out_features
            for name, value in values.items():
                if isinstance(getattr(module, name, None), int) and name in vars(module):
                    setattr(module, name, value)
            del heads[layer]
    return network


HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
QUERIES = (
    ("qkv",), ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
)  # fmt: skip


def _heads_of(module: nn.Module) -> dict[nn.Module, int]:
    """Return the layers of an attention and their numbers of heads, as Torch-Pruning wants to be told."""
    config = getattr(module, "config", None)
    count = next((n for at in (module, config) for key in HEADS if isinstance(n := getattr(at, key, None), int)), None)
    fewer = next(
        (n for at in (module, config) if isinstance(n := getattr(at, "num_key_value_heads", None), int)), count
    )
    for names in QUERIES:
        layers = [module._modules.get(name) for name in names]
        if count and all(isinstance(layer, nn.Linear) for layer in layers):
            return {layer: count if at == 0 else fewer for at, layer in enumerate(layers)}  # type: ignore[misc]
    return {}


def _last(network: nn.Module, example: Any) -> list[nn.Module]:
    """Return the layers as wide as the output, which nobody may prune."""
    with torch.no_grad():
        width = tensors_of(_run(network, example))[0].shape[-1]
    return [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == width]


def kirigami(network: nn.Module, example: Any) -> nn.Module:
    """Prune a copy with all candidates that it finds, and with heads where it knows them, else without."""
    from torch_kirigami import DependencyGraph, KirigamiError, TensorRef
    from torch_kirigami.pruning import Candidate, CandidateSpace, ChannelRatio, Greedy, GroupMagnitude, Pruner

    given = {"kwargs": example} if isinstance(example, dict) else {"args": example}
    given = {"args": (example,)} if isinstance(example, Tensor) else given
    for with_heads in (True, False):
        small = copy.deepcopy(network)
        try:
            graph = DependencyGraph.build(small, **given)
            pruner = Pruner(small, graph=graph)
            space = pruner.discover_candidates()
            heads, axes = [], []
            for operation in graph.operations() if with_heads else ():
                if operation.node.target is not nn.functional.scaled_dot_product_attention:
                    continue
                query = operation.argument("query", 0)
                if isinstance(query, TensorRef) and len(query.shape) == 4:
                    axes.append(query.axis(1))
                    name = operation.node.name
                    heads += [Candidate(f"{name}:head:{i:04d}", (axes[-1].select([i]),), axes[-1])
                              for i in range(query.shape[1])]  # fmt: skip
            if with_heads and not axes:
                continue
            every = CandidateSpace(
                (*space.candidates, *heads), (*space.channel_axes, *axes), exclusions=space.exclusions
            )
            if not every.candidates:
                raise RefusedError("no candidates")
            return pruner.prune(every, budget=ChannelRatio(HALF), strategy=Greedy(GroupMagnitude(p=2)))[0]
        except KirigamiError as error:
            last = error
    raise RefusedError(f"{type(last).__name__}: {last}")


LIBRARIES: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "lighten": lighten, "Torch-Pruning": torch_pruning, "torch-kirigami": kirigami,
}  # fmt: skip


def judge(name: str, library: str) -> dict[str, Any]:
    """Return what a library makes of a network: kind, words, share of multiply-accumulates saved."""
    network, batch, _ = build(name)
    _tell_apart_(network)
    example = batch(2)
    try:
        cut = LIBRARIES[library](network, copy.deepcopy(example))
    except RefusedError as error:
        return {"kind": "refused", "words": _first(error)}
    except Exception as error:
        return {"kind": "crashed", "words": f"{type(error).__name__}: {_first(error)}"}
    cut.eval()
    example = batch(3)
    try:
        found, expected = outputs(cut, example), outputs(network, example)
        saved = 1 - _macs(cut, example) / _macs(network, example)
        loss = sum(x.square().mean() for x in tensors_of(_run(cut, example)) if x.requires_grad)
        loss.backward()  # type: ignore[union-attr]
    except Exception as error:
        return {"kind": "crashed", "words": f"the cut network: {type(error).__name__}: {_first(error)}"}
    if [x.shape for x in found] != [x.shape for x in expected]:
        return {"kind": "wrong", "words": "other shapes", "saved": saved}
    if saved <= 0:
        return {"kind": "refused", "words": "nothing is cut", "saved": saved}
    masked, why = masked_like(network, cut)
    if masked is None:
        return {"kind": "not compared" if saved >= HALF else "partial", "words": f"not compared: {why}", "saved": saved}
    if gap(outputs(masked, example), expected) < VISIBLE:
        return {"kind": "not compared", "words": "what is masked hardly changes the outputs", "saved": saved}
    off, most = _difference(masked, cut, example)
    if not off <= most:
        return {"kind": "wrong", "words": f"{off:.2g} off the masked network", "saved": saved}
    return {"kind": "proven" if saved >= HALF else "partial", "words": f"{off:.1g}", "saved": saved}


@torch.no_grad()
def _tell_apart_(network: nn.Module) -> None:
    """Give each vector values that are all different, and no matrix such small ones that a bias hides it."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and parameter.is_floating_point() and parameter.std() < 0.01:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        if parameter.ndim == 1 and parameter.is_floating_point() and len(parameter.unique()) < len(parameter):
            low, high = float(parameter.min()), float(parameter.max())
            steps = (torch.randperm(len(parameter)) + 0.5) / len(parameter)
            parameter.copy_(low + (high - low) * steps if high > low else low + 0.1 * steps)


def masked_like(network: nn.Module, cut: nn.Module) -> tuple[nn.Module | None, str]:
    """Return a copy of ``network`` with zeros where ``cut`` has nothing left; its norms take what is left."""
    masked, small = copy.deepcopy(network), dict(cut.named_parameters())
    kept: dict[str, list[Tensor]] = {}
    for name, parameter in masked.named_parameters():
        if name not in small:
            return None, f"{name} is not in the cut network"
        places = places_of(parameter.detach(), small[name].detach())
        if places is None:
            return None, f"{name} has other values"
        if parameter.shape != small[name].shape:
            kept[name] = places
            mask = torch.zeros_like(parameter)
            mask[torch.meshgrid(*places, indexing="ij")] = 1
            parameter.data.mul_(mask)
    for name, module in list(masked.named_modules()):
        own = type(module).__name__
        if re.search("norm", own, re.IGNORECASE) and not re.search("batch|instance", own, re.IGNORECASE):
            vectors = [kept[f"{name}.{key}"][0] for key, p in module._parameters.items()
                       if p is not None and p.ndim == 1 and f"{name}.{key}" in kept]  # fmt: skip
            if vectors:
                masked.set_submodule(name, OnKept(cut.get_submodule(name), vectors[0]), strict=True)
    return masked, ""


class OnKept(nn.Module):
    """The cut network's norm on those channels of the uncut network that are left, zeros for the others."""

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = copy.deepcopy(norm), kept
        self.dim = 1 if re.search("2d|group", type(norm).__name__, re.IGNORECASE) else -1

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Take part of ``x``, normalize, put it back."""
        y = self.norm(x.index_select(self.dim, self.kept), *args, **kwargs)
        return torch.zeros_like(x, dtype=y.dtype).index_copy(self.dim, self.kept, y)


def places_of(whole: Tensor, cut: Tensor, samples: int = 32) -> list[Tensor] | None:
    """Return which places along each dimension of ``whole`` are left in ``cut``, found by values; None if not."""
    if whole.ndim != cut.ndim or any(a < b for a, b in zip(whole.shape, cut.shape, strict=True)):
        return None
    flat = whole.flatten().numpy()
    order = np.argsort(flat, kind="stable")
    places, generator = [], np.random.default_rng(0)
    for dim, size in enumerate(cut.shape):
        if size == whole.shape[dim]:
            places.append(torch.arange(size))
            continue
        rows = cut.movedim(dim, 0).reshape(size, -1).numpy()
        columns = generator.integers(rows.shape[1], size=min(samples, rows.shape[1]))
        asked = rows[:, columns]
        at = np.searchsorted(flat, asked, sorter=order).clip(max=len(flat) - 1)
        index = np.unravel_index(order[at], whole.shape)[dim]
        places.append(torch.from_numpy(np.array([np.bincount(row).argmax() for row in index])))
    if not torch.equal(whole[torch.meshgrid(*places, indexing="ij")] if places else whole, cut):
        return None
    return places


def _difference(masked: nn.Module, cut: nn.Module, batch: Any) -> tuple[float, float]:
    try:
        exact = Survey._cast(batch, torch.float64)
        return gap(*(outputs(copy.deepcopy(m).double(), exact) for m in (masked, cut))), EXACT
    except (RuntimeError, TypeError):  # some forwards are of float32 alone
        return gap(outputs(masked, batch), outputs(cut, batch)), FLOAT_FILE


def outputs(network: nn.Module, batch: Any) -> list[Tensor]:
    """Return all tensors that the network puts out but for its caches, which are as narrow as its layers."""
    torch.manual_seed(1)
    with torch.no_grad():
        output = _run(network, batch)
    if isinstance(output, Mapping):
        output = {key: value for key, value in output.items() if key != "past_key_values"}
    return tensors_of(output)


def _run(network: nn.Module, batch: Any) -> Any:
    batch = copy.deepcopy(batch)
    if isinstance(batch, dict):
        return network(**batch)
    return network(*batch) if isinstance(batch, tuple) else network(batch)


def _macs(network: nn.Module, batch: Any) -> int:
    """Count them, those of attention's products too."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _run(network, batch)
    return counter.get_total_flops() // 2


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _work(name: str, library: str, limit: int, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1), os.dup2(silence, 2)
    torch.set_num_threads(1)
    pipe.send(judge(name, library))


def ask(name: str, library: str, limit: int) -> dict[str, Any]:
    """Return what ``judge`` finds in a process of its own, which ends after so much processor time."""
    context = mp.get_context("fork")
    ours, theirs = context.Pipe()
    process, begun = context.Process(target=_work, args=(name, library, limit, theirs)), time.perf_counter()
    process.start()
    theirs.close()
    found: dict[str, Any] = {"kind": "slow", "words": "waits"}
    with contextlib.suppress(EOFError):
        if ours.poll(PATIENCE * limit):
            found = {"kind": "crashed", "words": "the process died"}
            found = ours.recv()
    process.kill()
    process.join()
    if process.exitcode == -signal.SIGXCPU:
        found = {"kind": "slow", "words": f"{limit} s"}
    return {**found, "seconds": round(time.perf_counter() - begun, 1)}


def main(argv: Sequence[str]) -> None:
    """Ask every library for every network; print counts, then each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="such as timm/deit_tiny_patch16_224 (default: all)")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/foreign_peers.json"), help="gone on from")
    parser.add_argument("--limit", type=int, default=120, help="processor seconds for one network (default: 120)")
    parser.add_argument("--libraries", type=lambda text: text.split(","), default=list(LIBRARIES), help="with commas")
    parser.add_argument("--rows", type=Path, help="rows of the table that python -m benchmarks writes")
    asked = parser.parse_args(argv)
    results: dict[str, dict[str, Any]] = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    import_libraries()
    for name in asked.networks or [name for words in NETWORKS.values() for name in words.split()]:
        for library in asked.libraries:
            key = f"{library} | {name}"
            if key not in results:
                results[key] = ask(name, library, asked.limit)
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(results, indent=1))
                shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in results[key].items()}
                print(f"{key}: {', '.join(map(str, shown.values()))}", flush=True)
        note_rows(asked.rows, results)
    print_table(results)


def note_rows(path: Path | None, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Note how many networks each library prunes, of those that all have been asked for, with what proves it."""
    asked = {key.partition(" | ")[2] for key in results}
    asked = {name for name in asked if all(f"{library} | {name}" in results for library in LIBRARIES)}
    figures: dict[str, float | str] = {}
    for library in LIBRARIES:
        kinds = Counter(results[f"{library} | {name}"]["kind"] for name in asked)
        words = {results[f"{library} | {name}"]["words"] for name in asked}
        missing = next((word for word in words if word.startswith("ModuleNotFoundError")), None)
        figures[library] = missing or float(kinds["proven"])
    if asked:
        claim = "networks of which half is pruned and the cut one equals the masked one"
        ours = figures.pop("lighten")
        add_row(path, Row("zoo", claim, f"of {len(asked)}", ours, figures, better="higher", command=command()))


def print_table(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print counts by library and family, then what became of each network."""
    packages = ("torch", "timm", "torchvision", "transformers", "torch-pruning", "torch-kirigami")
    versions = [f"{name} {version_of(name) or 'not installed'}" for name in packages]
    print(f"\n{', '.join(versions)}\n\n| library | networks | {' | '.join(KINDS)} |\n|---|---|{'---:|' * len(KINDS)}")
    for library in LIBRARIES:
        for family, words in {**NETWORKS, "all": " ".join(NETWORKS.values())}.items():
            mine = [found for n in words.split() if (found := results.get(f"{library} | {n}"))]
            counts = Counter(found["kind"] for found in mine)
            print(f"| {library} | {family} ({len(mine)}) | {' | '.join(str(counts[kind]) for kind in KINDS)} |")
    print(f"\n| network | {' | '.join(LIBRARIES)} |\n|---|{'---|' * len(LIBRARIES)}")
    for name in [name for words in NETWORKS.values() for name in words.split()]:
        cells = []
        for library in LIBRARIES:
            found = results.get(f"{library} | {name}", {"kind": ""})
            cells.append(f"{found['kind']}" + (f", {found['saved']:.0%}" if "saved" in found else ""))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])

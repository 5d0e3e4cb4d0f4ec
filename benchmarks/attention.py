"""What heads and widths of attention are worth: ``python benchmarks/attention.py [trained] [speed]``.

``trained``: classifiers of DeiT's and of Swin's shape, ``timm``'s own classes, on the embedded Fashion-MNIST; each
seed's dense model loses half of its multiply-accumulates, once in everything (heads, width, feed-forward nodes) and
once in its feed-forward nodes alone, by three scores, in the same number of steps. What the JSON
holds is not run again.
``speed``: torchvision's ViT-B/32 against itself at half of everything, in onnxruntime.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import re
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import foreign_vision  # noqa: F401 (before whatever imports torchvision)
import torch
import torchvision
from timm.layers import set_fused_attn
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lighten import DistillationModule, Prune, build_data, calibrate_, export_onnx, plan_pruning, quantize_, shrink
from lighten.delivery.measure.latency import interleaved_latency
from lighten.delivery.measure.measure import predict
from lighten.delivery.runtimes.runners import count_torch, open_runner
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings
from lighten.training.reference import reference
from lighten.utils.fingerprint import fingerprint_of
from lighten.utils.inputs import as_call

IMAGE = torch.zeros(1, 1, 28, 28)
FIT = {"name": "adamw", "lr": 0.003, "weight_decay": 0.05}
FINE_TUNING = {"name": "adamw", "lr": 0.001, "weight_decay": 0.05}
BATCH, STEPS = 32, 62
"""Samples of a step, steps of an epoch: 2,000 images or so, others in each."""
AMOUNT = 0.5
"""Share of the multiply-accumulates to go (``trained``); of all channels (``speed``)."""
SCORES = ("fpgm", "magnitude", "taylor")

IMAGES: dict[str, Any] = {"img_size": 28, "in_chans": 1, "num_classes": 10}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "DeiT-shaped": lambda: VisionTransformer(patch_size=4, embed_dim=64, depth=4, num_heads=4, **IMAGES),
    "Swin-shaped": lambda: SwinTransformer(
        patch_size=2, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=7, **IMAGES
    ),
}
"""16 heads' features each; the second has two stages of 14x14 and 7x7 places, shifted windows, patch merging."""

ALL, FEED_FORWARD = "heads, width, feed-forward", "feed-forward alone"
KEPT: dict[str, tuple[str, ...]] = {
    "DeiT-shaped": ("patch_embed.proj", "*attn.qkv"),
    "Swin-shaped": ("patch_embed.proj", "*attn.qkv", "*downsample.reduction"),
}
"""What is excluded for the feed-forward alone: layers of the residual widths, and of the heads."""


def main() -> None:
    """Measure and print."""
    parts = {"trained": _trained, "speed": _speed}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="part", help=", ".join(parts))
    parser.add_argument("--threads", type=int, default=1, help="of training; speed takes one")
    parser.add_argument("--seeds", type=int, default=3, help="trained: how many, from 0 on")
    parser.add_argument("--dense-epochs", type=int, default=10, help=f"trained: of {STEPS} steps")
    parser.add_argument("--epochs", type=int, default=2, help="trained: of fine-tuning")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"), help="trained: where dense models stay")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/attention.json"), help="trained: results")
    parser.add_argument("--int8", action="store_true", help="speed: both files in int8 too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    versions = [f"{name} {version(name)}" for name in ("torch", "timm", "onnxruntime")]
    print(f"{processor}, {arguments.threads} threads, {', '.join(versions)}, load {os.getloadavg()[0]:.1f}")
    for name in arguments.parts or parts:
        print(f"\n{name}")
        parts[name](arguments)


def _trained(arguments: argparse.Namespace) -> None:
    set_fused_attn(False)  # PyTorch's counter of operations does not see into the fused kernel of the CPU
    results: dict[str, dict[str, Any]] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for seed in range(arguments.seeds):
        for network in NETWORKS:
            data = build_data("fashion_mnist", batch_size=BATCH, seed=seed, augment=False)
            data.setup("fit")
            for what in [("dense", ""), *((widths, score) for score in SCORES for widths in (ALL, FEED_FORWARD))]:
                key = " | ".join((network, *what, f"seed {seed}, {arguments.dense_epochs}+{arguments.epochs} epochs"))
                if key in results:
                    continue
                results[key] = _one(network, *what, seed, data, arguments)
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(results, indent=1))
                print(f"  {key}: {results[key]['accuracy']:.2f} %, {results[key]['macs'] / 1e6:.3f} M MACs", flush=True)
    _print_trained(results, arguments)


def _one(network: str, widths: str, score: str, seed: int, data: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    parts = {"network": network, "seed": seed, "data": data.fingerprint, "optimizer": FIT, "steps": STEPS,
             "epochs": arguments.dense_epochs}  # fmt: skip
    train = partial(_fit, data=data, optimizer=FIT, epochs=arguments.dense_epochs, network=network)
    model = reference(arguments.cache, partial(_build, network, seed), train, fingerprint_of(**parts))
    found: dict[str, Any] = {}
    if widths != "dense":
        exclude = KEPT[network] if widths == FEED_FORWARD else ()
        prune = Prune(AMOUNT, score=score, begin=0.0, end=0.5, target="macs", module="student", exclude=exclude)
        _fit(model, data, FINE_TUNING, arguments.epochs, network, [prune])
        assert prune.plan is not None
        found["widths"] = {group.name: (group.width_before, group.width_after) for group in prune.plan.groups}
        model = shrink(model, prune.plan)
    logits, labels = predict(model, data.test_dataloader(), threads=arguments.threads)
    size = count_torch(model, as_call(IMAGE))
    return {"accuracy": 100 * float((logits.argmax(1) == labels).mean()), **size, **found}


def _print_trained(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print a row for each network and score: both widths, and how they compare seed by seed."""
    print(f"{arguments.dense_epochs} dense epochs of {STEPS} steps of {BATCH}, {arguments.epochs} of fine-tuning; "
          f"{arguments.seeds} seeds, 2,000 test images\n")  # fmt: skip
    print(f"| network | score | MACs | {ALL} | {FEED_FORWARD} | difference | better in |")
    print("|---|---|---:|---:|---:|---:|---|")

    def of(network: str, widths: str, score: str, key: str) -> list[float]:
        tail = f"{arguments.dense_epochs}+{arguments.epochs} epochs"
        return [
            results[f"{network} | {widths} | {score} | seed {seed}, {tail}"][key] for seed in range(arguments.seeds)
        ]

    for network in NETWORKS:
        dense, macs = (of(network, "dense", "", key) for key in ("accuracy", "macs"))
        print(f"| {network} | dense | {macs[0] / 1e6:.2f} M | {_spread(dense)} % | | | |")
        for score in SCORES:
            both = [of(network, widths, score, "accuracy") for widths in (ALL, FEED_FORWARD)]
            macs = [n for widths in (ALL, FEED_FORWARD) for n in of(network, widths, score, "macs")]
            gains = [ours - theirs for ours, theirs in zip(*both, strict=True)]
            print(
                f"| {network} | {score} | {min(macs) / 1e6:.2f} to {max(macs) / 1e6:.2f} M | {_spread(both[0])} % | "
                f"{_spread(both[1])} % | {_spread(gains, '+')} | {sum(g > 0 for g in gains)} of {len(gains)} |"
            )


def _spread(values: Sequence[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{spread}"


def _fit(model: nn.Module, data: Any, optimizer: Any, epochs: int, network: str, callbacks: Sequence[Any] = ()) -> None:
    module = DistillationModule(model.train(), None, soft_weight=0.0, optimizer=OptimizerSettings(**optimizer))
    settings = {
        "max_epochs": epochs, "precision": "32-true", "accelerator": "cpu", "gradient_clip_val": 1.0,
        "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0,
        "limit_train_batches": STEPS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = make_trainer(folder=folder, stage="fit", settings=settings, callbacks=callbacks, seed=data.seed)
        trainer.fit(module, data)
    model.eval()


def _build(network: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[network]()


def _speed(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 224, 224)
    dense = torchvision.models.vit_b_32(weights=None).eval()
    nn.init.normal_(dense.heads.head.weight, std=0.02)  # zeros, as torchvision leaves it, would hide a fault
    half = shrink(dense, plan_pruning(dense, image, AMOUNT))
    models = {"uncut": dense, "half": half}
    sizes = {name: count_torch(model, as_call(image)) for name, model in models.items()}
    for name, size in sizes.items():
        left = [size[key] / sizes["uncut"][key] for key in ("macs", "parameters")]
        print(f"  {name}: {size['macs'] / 1e6:.0f} M MACs ({left[0]:.1%}), {size['parameters'] / 1e6:.2f} M parameters "
              f"({left[1]:.1%})", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = {
            f"{name}, float32": _file(model, image, Path(folder) / f"{name}.onnx") for name, model in models.items()
        }
        if arguments.int8:
            for name, model in models.items():
                quantize_(model, example_input=image)
                calibrate_(model, [(torch.randn(2, 3, 224, 224), None) for _ in range(2)])
                files[f"{name}, int8"] = _file(model, image, Path(folder) / f"{name}-int8.onnx")
        runners = {name: stack.enter_context(open_runner(path, threads=1)) for name, path in files.items()}
        found = interleaved_latency(runners, {"batch_1": as_call(image)}, seconds=15.0)
        first = found["uncut, float32"]["batch_1"]["median"]
        for name, path in files.items():
            median = found[name]["batch_1"]["median"]
            print(f"  {name}: {median:.2f} ms at batch 1, {first / median:.2f} x, {path.stat().st_size / 1e6:.1f} MB")


def _file(model: nn.Module, image: torch.Tensor, path: Path) -> Path:
    export_onnx(model, copy.deepcopy(image), path)
    return path


if __name__ == "__main__":
    main()

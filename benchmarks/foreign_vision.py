"""Networks of ``torchvision`` and ``timm`` with random weights, and the images that they take.

``torchvision``'s compiled operators do not load beside the CPU build of torch, so the two that its import asks for are
defined here, in Python. ``torchmetrics`` imports ``torchvision`` where it is installed: import this before ``lighten``.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MAX_PARAMETERS = 60_000_000
SIZES = (64, 96, 112, 128, 160, 192, 224, 256, 299, 384, 448, 512)
CLASSES = 10

Batch = Any
"""What a network is called with: a tensor, a tuple of positionals or a dict of keywords."""


class NotBuiltError(Exception):
    """The network cannot be made here; nothing is said of ``lighten``."""


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    from torchvision.ops import box_iou

    order, kept = scores.argsort(descending=True), []
    while len(order):
        kept.append(order[0])
        order = order[1:][box_iou(boxes[order[:1]], boxes[order[1:]])[0] <= threshold]
    return torch.stack(kept) if kept else order


OPERATORS = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
OPERATORS.impl("nms", _nms, "CPU")
import torchvision  # noqa: E402

torchvision.ops.boxes._assert_has_ops = lambda: None


Candidates = Iterator[tuple[Callable[[], nn.Module], Callable[[int], Batch], str]]


def small(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        size = sum(p.numel() for p in make().parameters())
    if size > MAX_PARAMETERS:
        raise NotBuiltError(f"{size / 1e6:.0f} M parameters")
    return make()


def _image(size: int, *leading: int) -> Callable[[int], Tensor]:
    return lambda samples: torch.randn(samples, 3, *leading, size, size)


VIDEO = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit_v2_s", "mvit_v1_b", "swin3d_t")
DETECTORS = ("rcnn", "fcos", "retinanet", "ssd")


def of_torchvision(own: str) -> Candidates:
    options = {"weights": None, "num_classes": CLASSES} if own != "raft_small" else {"weights": None}
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(own)).parameters:
        options["weights_backbone"] = None
    if own == "vgg11" or own == "vgg11_bn" or own == "alexnet":
        options["dropout"] = 0.1
    detector = any(word in own for word in DETECTORS)

    def make() -> nn.Module:
        network = torchvision.models.get_model(own, **options)
        if own.startswith(("vgg", "alexnet")):  # their first dense layer alone has up to 100 million weights
            network.avgpool = nn.AdaptiveAvgPool2d(1 if own.startswith("vgg") else 2)
            features = 512 if own.startswith("vgg") else 1024
            network.classifier = nn.Sequential(
                nn.Linear(features, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, 10)
            )
        return network

    for size in SIZES:
        if own == "raft_small":
            yield make, lambda n, s=size: (torch.randn(n, 3, s, s), torch.randn(n, 3, s, s)), f"2 x 3x{size}x{size}"
        elif detector:
            yield make, lambda n, s=size: ([torch.rand(3, s, s) for _ in range(n)],), f"list of 3x{size}x{size}"
        elif own in VIDEO:
            frames = 16
            yield make, _image(size, frames), f"3x{frames}x{size}x{size}"
        else:
            yield make, _image(size), f"3x{size}x{size}"


SMALLER: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
    "naflexvit_base_patch16_gap": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 2, "global_attn_indexes": (1,)},
    "nasnetalarge": {"stem_size": 24, "num_features": 1008},
}
"""Options that make networks small of which no small one has a name."""


def of_timm(own: str) -> Candidates:
    import timm

    for size in SIZES:
        for given in ({"img_size": size}, {}):
            options = {**given, **SMALLER.get(own, {})}
            yield (
                lambda o=options: small(lambda: timm.create_model(own, num_classes=CLASSES, **o)),
                _image(size),
                f"3x{size}x{size}",
            )

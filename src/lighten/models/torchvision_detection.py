"""Detectors of ``torchvision`` of one stage, answering with one tensor."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.models.detector import independent

HEAD = "head.classification_head."
"""Where a detector's weights hang on the number of classes."""


class BoxNetwork(nn.Module):
    """Boxes and independent classes at each anchor, before any is chosen; images are not resized here.

    Args:
        network: an FCOS, RetinaNet or SSD of ``torchvision``.
        num_classes: without the background.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to answers (N, anchors, 4 + classes)."""
        from torchvision.models.detection.image_list import ImageList

        network: Any = self.network
        features = network.backbone(x)
        levels = list(features.values()) if isinstance(features, Mapping) else [features]
        found = network.head(levels)
        height, width = x.shape[2:]
        (anchors,) = network.anchor_generator(ImageList(x[:1], [(height, width)]), levels)
        sides = _decoded(network.box_coder, found["bbox_regression"], anchors)
        sides = sides / sides.new_tensor([width, height, width, height])
        low, high = sides[..., :2], sides[..., 2:]
        logits = found["cls_logits"]
        if "bbox_ctrness" in found:
            logits = _centred(logits, found["bbox_ctrness"])
        elif logits.shape[-1] == self.num_classes + 1:
            logits = independent(torch.cat([logits[..., 1:], logits[..., :1]], -1))
        return torch.cat([(low + high) / 2, high - low, logits], -1)


def one_stage(models: Any) -> list[str]:
    """Return the names of the library's detectors that answer at each anchor, not with as many boxes as they find."""
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

    kinds = {name: signature(models.get_model_builder(name)) for name in models.list_models(models.detection)}
    return [name for name, kind in kinds.items() if not issubclass(kind.return_annotation, GeneralizedRCNN)]


def _decoded(coder: Any, offsets: Tensor, anchors: Tensor) -> Tensor:
    """Return boxes (N, anchors, 4), x0, y0, x1, y1 in pixels."""
    if not hasattr(coder, "decode_single"):
        return coder.decode(offsets, anchors)
    return coder.decode_single(offsets.flatten(0, 1), anchors.repeat(len(offsets), 1)).view_as(offsets)


def _centred(logits: Tensor, centre: Tensor) -> Tensor:
    """Return the logits of the square root of both odds' product, by which FCOS ranks its boxes."""
    logs = ((F.logsigmoid(logits) + F.logsigmoid(centre)) / 2).clamp(max=-1e-7)
    return logs - (-logs.expm1()).log()

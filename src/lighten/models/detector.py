"""Detectors and pose networks of ``transformers``, answering with one tensor."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class WithLoss:
    """What a network answers while it is given labels.

    Attributes:
        logits: the answers.
        loss: of the network's own making, a scalar.
    """

    logits: Tensor
    loss: Tensor


class Detector(nn.Module):
    """Boxes and independent classes at each query, of a network that answers with both apart.

    In training, queries that are there for its own loss alone (denoising, further groups) are left out.

    Args:
        network: its output carries ``.logits`` (N, queries, classes), or one more for "nothing" at the end, and
            ``.pred_boxes`` (N, queries, 4).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor | WithLoss:
        """Map images (N, C, H, W) to answers (N, queries, 4 + classes).

        Args:
            pixel_values: the images.
            labels: float32 (N, most, 5), class, centre x, centre y, width, height as shares of the image; the class is
                -1 in rows without a box. With them, the network's own loss is returned as well.
        """
        given = {} if labels is None else {"labels": by_image(labels)}
        output: Any = self.network(pixel_values, **given)
        config: Any = self.network.config
        logits, boxes = output.logits, output.pred_boxes
        denoising = getattr(output, "denoising_meta_values", None) if self.training else None
        first = denoising["dn_num_split"][0] if denoising else 0
        if first:
            logits, boxes = logits[:, first:], boxes[:, first:]
        queries = getattr(config, "num_queries", None)
        if queries is not None and self.training and logits.shape[1] > queries:
            logits, boxes = logits[:, :queries], boxes[:, :queries]
        if logits.shape[-1] == config.num_labels + 1:
            logits = independent(logits)
        answers = torch.cat([boxes, logits], -1)
        return answers if labels is None else WithLoss(answers, output.loss)


class PoseNetwork(nn.Module):
    """A heat map for each point, of a network that answers with more.

    Args:
        network: its output carries ``.heatmaps`` (N, points, h, w).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images (N, C, H, W) to heat maps (N, points, h, w)."""
        return self.network(pixel_values).heatmaps


def by_image(labels: Tensor) -> list[dict[str, Tensor]]:
    """Return labels (N, most, 5) as detectors of ``transformers`` take them: without the rows that hold no box."""
    found = [rows[rows[:, 0] >= 0] for rows in labels]
    return [{"class_labels": rows[:, 0].long(), "boxes": rows[:, 1:]} for rows in found]


def independent(logits: Tensor) -> Tensor:
    """Return the logits of sigmoids that give each class the odds that a softmax gives it; the last class goes.

    log p - log(1 - p) of class c is its logit, less the logarithm of the other classes' summed exponentials. That is
    well conditioned below one half; of the likeliest class the others are summed without it.
    """
    likeliest = torch.arange(logits.shape[-1], device=logits.device) == logits.argmax(-1, keepdim=True)
    others = logits.masked_fill(likeliest, -torch.inf).logsumexp(-1, keepdim=True)
    logs = logits.log_softmax(-1).masked_fill(likeliest, -torch.inf)
    below = logs - (-logs.exp()).log1p()
    return torch.where(likeliest, logits - others, below)[..., :-1]

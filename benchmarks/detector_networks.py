"""Detectors of ``transformers`` from small configs, with random weights and no hub; they answer with one tensor."""

from typing import Any

import torch
from torch import Tensor, nn

SIZE, CLASSES, QUERIES = 64, 5, 12
PLACES = 64 + 16 + 4
"""Places of three levels: all are picked, for which are the best may depend on rounding."""

RESNET = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
RT_RESNET = {**RESNET, "model_type": "rt_detr_resnet"}
HGNET = {
    "model_type": "hgnet_v2", "stem_channels": [3, 16, 16], "stage_in_channels": [16, 16, 32, 48],
    "stage_mid_channels": [16, 16, 24, 32], "stage_out_channels": [16, 32, 48, 64], "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3], "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 2, 1], "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
DINO = {
    "model_type": "rf_detr_dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": SIZE, "patch_size": 8, "num_windows": 2, "out_features": ["stage1", "stage2", "stage4"],
}  # fmt: skip
VIT = {
    "model_type": "vitpose_backbone", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": [SIZE, SIZE], "patch_size": [8, 8], "out_indices": [3],
}  # fmt: skip
HYBRID = {
    "encoder_hidden_dim": 32, "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "d_model": 32,
    "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 64, "decoder_attention_heads": 4, "decoder_layers": 2,
    "num_queries": PLACES, "num_denoising": 0,
}  # fmt: skip
SET = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": QUERIES, "use_timm_backbone": False,
}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "rt_detr": {**HYBRID, "backbone_config": RT_RESNET, "encoder_in_channels": [24, 32, 48]},
    "rt_detr_v2": {**HYBRID, "backbone_config": RT_RESNET, "encoder_in_channels": [24, 32, 48]},
    "d_fine": {**HYBRID, "backbone_config": HGNET, "encoder_in_channels": [32, 48, 64], "lqe_hidden_dim": 16},
    "rf_detr": {
        "backbone_config": DINO, "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2, "num_queries": QUERIES,
        "decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "group_detr": 2,
    },
    "detr": {**SET, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
    "conditional_detr": {**SET, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
    "deformable_detr": {**SET, "backbone_config": RESNET, "disable_custom_kernels": True},
    "yolos": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": [SIZE, SIZE], "patch_size": 8, "num_detection_tokens": QUERIES,
    },
    "vitpose": {"backbone_config": VIT},
}  # fmt: skip


class OneTensor(nn.Module):
    """A detector of ``transformers`` that answers with (batch, queries, 4 + classes); one of points, with heatmaps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return boxes and logits side by side."""
        output = self.network(pixel_values)
        return torch.cat([output.pred_boxes, output.logits], -1) if "pred_boxes" in output else output.heatmaps


def detector(family: str, **options: Any) -> nn.Module:
    """Return a detector with random weights that show in its answers, in eval mode.

    Args:
        family: a name of ``FAMILIES``.
        options: other entries of its config.
    """
    import transformers

    kind = transformers.CONFIG_MAPPING[family]
    config = kind(**{**FAMILIES[family], "num_labels": CLASSES, **options})
    torch.manual_seed(0)
    auto = transformers.AutoModelForObjectDetection
    made = transformers.VitPoseForPoseEstimation(config) if family == "vitpose" else auto.from_config(config)
    for module in made.modules():
        if isinstance(module.__dict__.get("running_var", module._buffers.get("running_var")), Tensor):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in made.parameters():
        if parameter.ndim > 1:  # fresh heads answer all places alike, and the best of them are any
            fan_in = max(1, parameter[0].numel())
            nn.init.normal_(parameter, std=1.5 * fan_in**-0.5)
    return OneTensor(made.float()).eval()


def images(samples: int = 2) -> Tensor:
    """Return a batch that every one of them takes."""
    return torch.randn(samples, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def apart(one: Tensor, other: Tensor) -> float:
    """Return how far answers are apart, each place from the nearest: in which order they are picked does not matter."""
    if one.ndim != 3:
        return float((one - other).abs().max())
    gaps = torch.cdist(one.double(), other.double(), p=float("inf"))
    return float(torch.maximum(gaps.amin(1).max(), gaps.amin(2).max()))

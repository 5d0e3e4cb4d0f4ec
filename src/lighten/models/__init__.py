"""Models that recipes name: ResNets, a U-Net, and any of ``timm``, ``torchvision`` and ``transformers``."""

from lighten.models.registry import build_model, check_model, model_names, register_model

__all__ = ["build_model", "check_model", "model_names", "register_model"]

"""Models that recipes name: ResNets, a plain CNN, an MLP, and any classifier of ``transformers``."""

from lighten.models.registry import build_model, check_model, model_names, register_model

__all__ = ["build_model", "check_model", "model_names", "register_model"]

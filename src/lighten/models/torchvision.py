"""Networks of the ``torchvision`` library by name, fresh or with its pretrained weights."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError, one_line
from lighten.models.registry import register_model
from lighten.models.torchvision_detection import HEAD, BoxNetwork, one_stage
from lighten.models.vision import SHORT, check_answer, check_name, check_pretrained, image_shape, library_of
from lighten.utils.compression import record_

COLOURS = 3
"""Channels of the images that all its networks are written for."""
_FOR_TRAINING = re.compile(r"(aux_classifier|aux\d|AuxLogits)\.")
"""Heads beside the head, which help to train and are not built."""
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in DenseNets' files, from before a dot had a meaning."""


class MaskNetwork(nn.Module):
    """Answers with the mask alone, where torchvision's network answers with a mapping."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes, H, W)."""
        return self.network(x)["out"]


@register_model("torchvision")
def torchvision(
    *, num_classes: int, input_shape: tuple[int, int, int], name: str, pretrained: bool | str = False
) -> nn.Module:
    """Build a classifier, or a network for masks or boxes, of ``torchvision``; any count of channels.

    Args:
        num_classes: size of the head; one of another size is replaced by a fresh one.
        input_shape: (channels, height, width).
        name: such as ``resnet18``, ``deeplabv3_mobilenet_v3_large`` or ``ssdlite320_mobilenet_v3_large``.
        pretrained: ``true`` for the library's own weights, from its server or the cache of it; or a file of
            safetensors.

    Raises:
        UserError: if ``torchvision`` is not installed, the name is unknown, or weights cannot be had or do not fit.
    """
    check(name, pretrained)
    models = library_of("torchvision").models
    channels, height, width = image_shape("torchvision", input_shape)
    where = f"model torchvision: {name}"
    masks, boxes = (name in models.list_models(kind) for kind in (models.segmentation, models.detection))
    options = {"weights_backbone": None, "aux_loss": False} if masks else _arguments(name, height, width)
    options |= {"weights_backbone": None} if boxes else {}
    heads = num_classes + name.startswith("ssd")  # whose first class is the background
    try:
        model = models.get_model(name, weights=None, num_classes=heads, **options)
    except Exception as error:
        raise UserError(f"{where} cannot be built ({one_line(error, SHORT)})") from error
    if pretrained is not False:
        _load_(where, model, _weights(where, models, name, pretrained), num_classes)
    if channels != COLOURS:
        _read_channels_(where, model, channels, keep=pretrained is not False)
    if masks:
        model = MaskNetwork(model)
    if boxes:
        model = BoxNetwork(model, num_classes)
    check_answer(where, model, num_classes + 4 * boxes, input_shape, dim=-1 if boxes else 1)
    record_(model, options={"name": name, "pretrained": False})
    return model


def check(name: str, pretrained: bool | str = False) -> None:
    """Check the options without building anything.

    Raises:
        UserError: as :func:`torchvision`.
    """
    models = library_of("torchvision").models
    known = [*models.list_models(models), *models.list_models(models.segmentation), *one_stage(models)]
    check_name("torchvision", name, known)
    check_pretrained("torchvision", pretrained)


def _arguments(name: str, height: int, width: int) -> dict[str, Any]:
    """Return what some builders must be told: the size of images, or to leave heads out that help to train."""
    if name.startswith("vit_"):
        return {"image_size": height}
    if name.startswith("maxvit_"):
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _weights(where: str, models: Any, name: str, pretrained: bool | str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if isinstance(pretrained, str):
            return load_file(pretrained)
        best = models.get_model_weights(name).DEFAULT
        return dict(best.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as error:
        advice = "" if isinstance(pretrained, str) else "; give pretrained=FILE.safetensors where there is no network"
        raise UserError(f"{where} cannot get its weights ({one_line(error, SHORT)}){advice}") from error


def _load_(where: str, model: nn.Module, weights: Mapping[str, Tensor], num_classes: int) -> None:
    """Load weights, leaving out a head for another number of classes; nothing else may be missing or left over."""
    own = model.state_dict()
    given = {_OLD_DENSE.sub(r"\1\2", key): value for key, value in weights.items() if not _FOR_TRAINING.match(key)}
    heads = {
        key
        for key in own.keys() & given.keys()
        if own[key].shape != given[key].shape
        and (own[key].shape == (num_classes, *given[key].shape[1:]) or key.startswith(HEAD))
    }
    wrong = sorted(own.keys() ^ given.keys()) + sorted(
        key for key in (own.keys() & given.keys()) - heads if own[key].shape != given[key].shape
    )
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise UserError(f"{where}: the weights do not fit in {len(wrong)} places, such as {wrong[0]}")
    model.load_state_dict(own | {key: value for key, value in given.items() if key not in heads})


def _read_channels_(where: str, model: nn.Module, channels: int, *, keep: bool) -> None:
    """Let the first convolution read images of other channels; with its weights, grey as three equal colours."""
    first, conv = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == COLOURS
    )
    if keep and channels != 1:
        raise UserError(f"{where}: the weights are for {COLOURS} channels or 1, the data has {channels}")
    settings: dict[str, Any] = {
        key: getattr(conv, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    fresh = nn.Conv2d(channels, conv.out_channels, bias=conv.bias is not None, **settings)
    with torch.no_grad():
        if keep:
            fresh.weight.copy_(conv.weight.sum(1, keepdim=True))
        else:
            fresh.weight.mul_(conv.weight.std() / fresh.weight.std() * (COLOURS / channels) ** 0.5)
        if conv.bias is not None and fresh.bias is not None:
            fresh.bias.copy_(conv.bias)
    owner, _, attribute = first.rpartition(".")
    setattr(model.get_submodule(owner), attribute, fresh)

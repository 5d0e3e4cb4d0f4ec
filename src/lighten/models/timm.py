"""Networks of the ``timm`` library by name, fresh or with its pretrained weights."""

from typing import Any

from torch import nn

from lighten.errors import UserError, one_line
from lighten.models.registry import register_model
from lighten.models.vision import SHORT, check_answer, check_name, check_pretrained, image_shape, library_of
from lighten.utils.compression import record_


@register_model("timm")
def timm(
    *, num_classes: int, input_shape: tuple[int, int, int], name: str, pretrained: bool | str = False
) -> nn.Module:
    """Build a network of ``timm`` that answers with ``num_classes`` numbers an image; any count of channels.

    Args:
        num_classes: size of the head; one of another size is replaced by a fresh one.
        input_shape: (channels, height, width).
        name: such as ``resnet18``, or with the tag of its weights, ``resnet18.a1_in1k``.
        pretrained: ``true`` for the library's own weights, from its hub or the cache of it; or a file of safetensors.

    Raises:
        UserError: if ``timm`` is not installed, the name is unknown, or weights cannot be had or do not fit.
    """
    check(name, pretrained)
    library = library_of("timm")
    channels, height, width = image_shape("timm", input_shape)
    where = f"model timm: {name}"
    config = library.get_pretrained_cfg(name)
    options: dict[str, Any] = {"in_chans": channels}
    if config is not None and config.fixed_input_size:
        options["img_size"] = (height, width)
    try:
        if pretrained is False:
            model = library.create_model(name, num_classes=num_classes, **options)
        else:
            model = _pretrained(library, name, config, pretrained, num_classes, options)
    except Exception as error:
        what = "cannot be built" if pretrained is False else "cannot get its weights"
        advice = "; give pretrained=FILE.safetensors where there is no network" if pretrained is True else ""
        raise UserError(f"{where} {what} ({one_line(error, SHORT)}){advice}") from error
    check_answer(where, model, num_classes, input_shape)
    record_(model, options={"name": name, "pretrained": False})
    return model


def check(name: str, pretrained: bool | str = False) -> None:
    """Check the options without building anything.

    Raises:
        UserError: as :func:`timm`.
    """
    library = library_of("timm")
    known = {*library.list_models(), *library.list_models(pretrained=True)}
    check_name("timm", name, known)
    check_pretrained("timm", pretrained)


def _pretrained(
    library: Any, name: str, config: Any, pretrained: bool | str, num_classes: int, options: dict[str, Any]
) -> nn.Module:
    """Return a network with all weights that it had when they were stored; only then may its head be replaced."""
    overlay, candidates = None, [config.num_classes]
    if isinstance(pretrained, str):
        found = _classes_of(pretrained, config.classifier)
        candidates = [config.num_classes, 0] if found is None else [found]
    for last, classes in enumerate(candidates, 1 - len(candidates)):
        if isinstance(pretrained, str):
            overlay = {"file": pretrained, "custom_load": False, "num_classes": classes}
        try:
            model: Any = library.create_model(
                name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **options
            )
            break
        except RuntimeError:
            if last == 0:
                raise
    if classes != num_classes:
        model.reset_classifier(num_classes)
    return model


def _classes_of(path: str, classifier: Any) -> int | None:
    """Return for how many classes a file of weights has a head; ``None`` where no head is called as the network's."""
    from safetensors import safe_open

    name = classifier if isinstance(classifier, str) or classifier is None else classifier[0]
    with safe_open(path, "pt") as file:
        return file.get_slice(f"{name}.weight").get_shape()[0] if f"{name}.weight" in file.keys() else None  # noqa: SIM118

"""What networks of ``timm`` and ``torchvision`` have in common: package, name, weights, and the proof by running."""

import importlib
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError, did_you_mean, one_line

EXTRA = "vision"
"""Of lighten, which installs both packages."""
SUFFIX = ".safetensors"
SHORT = 200
"""Characters of another library's message that are told."""
NEAREST = 8
"""Names that are told of hundreds."""


def library_of(package: str) -> Any:
    """Return the package.

    Raises:
        UserError: if it is not installed, or does not fit the installed torch.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"model {package}: {error.name} is not installed; pip install 'lighten[{EXTRA}]'") from error
    except (RuntimeError, OSError, ImportError) as error:
        raise UserError(
            f"model {package}: {package} does not fit torch {torch.__version__} ({one_line(error, SHORT)}); install "
            "both from one index"
        ) from error


def check_name(package: str, name: str, known: Collection[str]) -> None:
    """Check the name of a network.

    Raises:
        UserError: if it is unknown; the nearest ones are given.
    """
    if name not in known:
        nearest = get_close_matches(name[:100], known, n=NEAREST, cutoff=0)
        raise UserError(f"model {package}: name={name!r} is unknown among {len(known)}; {did_you_mean(name, nearest)}")


def check_pretrained(package: str, pretrained: bool | str) -> None:
    """Check where weights come from, without reading them.

    Raises:
        UserError: if they are to come from anything but the library's own hub or a file of safetensors that is there.
    """
    if isinstance(pretrained, bool):
        return
    where = f"model {package}: pretrained={pretrained!r}"
    if not isinstance(pretrained, str) or "://" in pretrained or not pretrained.endswith(SUFFIX):
        raise UserError(f"{where}, expected true, false or a file that ends with {SUFFIX}")
    if not Path(pretrained).is_file():
        raise UserError(f"{where}: no such file; give the path of a {SUFFIX} file, or true where there is a network")


def image_shape(package: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, height, width).

    Raises:
        UserError: if the data are no images.
    """
    if len(input_shape) != 3:
        raise UserError(f"model {package} is for images, the data's inputs are {tuple(input_shape)}")
    channels, height, width = input_shape
    return channels, height, width


def check_answer(where: str, model: nn.Module, num_classes: int, input_shape: Sequence[int], *, dim: int = 1) -> None:
    """Run two black images through a network, in evaluation mode, to see that it takes them and answers as it must.

    Args:
        where: begins messages.
        model: the network.
        num_classes: what it answers with, along ``dim``.
        input_shape: of an image.
        dim: of the answer.

    Raises:
        UserError: if it does not.
    """
    training = model.training
    shape = " × ".join(map(str, input_shape))
    try:
        with torch.no_grad():
            answer = model.eval()(torch.zeros(2, *input_shape))
    except Exception as error:
        raise UserError(f"{where} cannot read images of {shape} ({one_line(error, SHORT)})") from error
    finally:
        model.train(training)
    if not isinstance(answer, Tensor) or (len(answer), answer.shape[dim]) != (2, num_classes):
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        wanted = f"{num_classes}, …" if dim == 1 else f"…, {num_classes}"
        raise UserError(f"{where} answers with {found}, expected a tensor of (batch, {wanted})")

"""Networks of other libraries with random weights, small enough to be built by the hundred; what ``foreign.py`` asks.

``names`` lists them, ``build`` makes one with the inputs that it takes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from foreign_transformers import of_transformers
from foreign_vision import Batch, NotBuiltError, of_timm, of_torchvision
from torch import Tensor, nn


def import_libraries() -> None:
    """Import what every network needs, once, before processes are forked."""
    import timm  # noqa: F401
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1))


def names() -> list[str]:
    """Return every network of the survey as ``library/name``, small ones first; ``build`` knows more names."""
    found, library = [], ""
    for word in (Path(__file__).parent / "foreign_networks.txt").read_text().split():
        if word.endswith(":"):
            library = word[:-1]
        else:
            found.append(f"{library}/{word}")
    return found


def build(name: str) -> tuple[nn.Module, Callable[[int], Batch], str]:
    """Return the network ``name`` in eval mode, a maker of batches of any size, and the input in words.

    Weights are random, and so are all parameters that begin as a constant (norms, biases, layer scale) and the
    statistics of norms: on zeros and ones a fault does not show.

    Raises:
        NotBuiltError: if the library cannot make it from a name or a small config, or it takes no input known here.
    """
    library, _, own = name.partition("/")
    torch.manual_seed(0)
    makers = {"torchvision": of_torchvision, "timm": of_timm, "transformers": of_transformers}
    candidates = makers[library](own)
    for make, batch, words in candidates:
        torch.manual_seed(0)
        try:
            network = make()
            randomise_(network)
            network.eval()
            with torch.no_grad():
                network(*_positional(batch(2)), **_keywords(batch(2)))
        except NotBuiltError:
            raise
        except Exception as error:
            last = error
            continue
        return network, batch, words
    raise NotBuiltError(f"{type(last).__name__}: {last}".splitlines()[0][:120])


def _positional(batch: Batch) -> tuple[Any, ...]:
    return () if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)


def _keywords(batch: Batch) -> dict[str, Any]:
    return batch if isinstance(batch, dict) else {}


@torch.no_grad()
def randomise_(network: nn.Module) -> None:
    """Draw norm statistics, norms' weights and biases, and what else begins as a constant."""
    for module in network.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
    for parameter in network.parameters():
        if (
            parameter.numel() < 2
            or not parameter.is_floating_point()
            or bool((parameter != parameter.ravel()[0]).any())
        ):
            continue
        value = float(parameter.ravel()[0])
        if value == 0:
            parameter.normal_(std=0.1)
        else:
            parameter.uniform_(0.5, 1.5).mul_(1 if value > 0.1 else 0.3)

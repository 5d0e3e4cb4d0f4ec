"""A teacher that training cannot touch: in no state dict, optimizer, bucket or checkpoint, always in eval."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.example import Call, logits_of, map_tensors


class Teacher:
    """Holds a frozen teacher outside its owner's module tree.

    A plain object, so that an ``nn.Module`` that keeps it as an attribute does not register it: ``train()``,
    ``parameters()``, ``state_dict()`` and DDP never see it.

    Args:
        module: the teacher; put in eval mode and frozen, in place.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = frozen(module)
        self._device: torch.device | None = None
        self._fingerprint: str | None = None

    @torch.no_grad()
    def logits(self, call: Call, device: torch.device) -> Tensor:
        """Return the teacher's logits, (batch, classes), for a call whose tensors are on ``device``.

        The teacher moves there on the first call. It is not compiled, cast or wrapped.
        """
        if self._device != device:
            self.module.to(device)
            self._device = device
        if self.module.training:
            self.module.eval()
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), None)
        if dtype is not None:  # a trainer in true half precision casts the batch, not the teacher
            call = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, call)
        return logits_of(self.module(*call[0], **call[1]))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the teacher's weights, computed once."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.module)
        return self._fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_device": None}


def frozen(module: nn.Module) -> nn.Module:
    """Put ``module`` in eval mode without gradients, in place, and return it."""
    return module.eval().requires_grad_(False)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of every entry of the state dict, as hex.

    Equal for equal weights on any device and in any order of registration.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ``UserError`` if the two share a parameter: freezing the teacher would freeze the student."""
    own = {id(p): name for name, p in teacher.named_parameters()}
    shared = [name for name, p in student.named_parameters() if id(p) in own]
    if shared:
        raise UserError(
            f"student and teacher share {len(shared)} parameters ({shared[0]!r} is one), expected none; "
            "give the student its own with copy.deepcopy"
        )

"""Teacher: frozen models that are in no state dict, optimizer, bucket or checkpoint, always in eval mode."""

import contextlib
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lighten.distillation.settings import check_precision, check_teacher_weights
from lighten.errors import UserError
from lighten.utils.inputs import Call, logits_of, map_tensors, run


class Teacher:
    """Holds a frozen teacher, or several, outside its owner's module tree.

    A plain object, so that an ``nn.Module`` that keeps it as an attribute does not register it: ``train()``,
    ``parameters()``, ``state_dict()``, DDP and FSDP never see it.

    Args:
        module: the teacher, or several; put in eval mode and frozen, in place.
        weights: of several, by default equal; the logits' weighted mean is what they say together, which is the
            normalised geometric mean of their distributions (Hinton et al. 2015, section 5).
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"`` by autocast; ``None`` goes with the trainer.
        compiled: run through ``torch.compile``.
        outputs: name or position of the logits in what a teacher returns, where it returns several values.

    Raises:
        UserError: if there is none, a weight is missing or not above zero, the precision is unknown, or a teacher has
            no weights yet (it is on the meta device).
    """

    def __init__(
        self,
        module: nn.Module | Sequence[nn.Module],
        *,
        weights: Sequence[float] | None = None,
        precision: str | None = None,
        compiled: bool = False,
        outputs: str | int | None = None,
    ) -> None:
        modules = [module] if isinstance(module, nn.Module) else list(module)
        if not modules:
            raise UserError("teacher=[]: expected a model, or several")
        given = [1.0] * len(modules) if weights is None else [float(w) for w in weights]
        check_teacher_weights(given, len(modules))
        check_precision(precision)
        for each in modules:
            if any(p.is_meta for p in each.parameters()):
                raise UserError(
                    f"teacher {type(each).__name__} has no weights, it is on the meta device; build it outside "
                    "of torch.device('meta') and trainer.init_module(), which are for the student"
                )
        self.modules = [frozen(each) for each in modules]
        self.weights = [w / sum(given) for w in given]
        self.precision = precision
        self.compiled = compiled
        self.outputs = outputs
        self._run: list[Any] | None = None
        self._device: torch.device | None = None
        self._fingerprint: str | None = None

    @property
    def module(self) -> nn.Module:
        """The teacher, of several the first: the one whose layers are compared."""
        return self.modules[0]

    @torch.no_grad()
    def logits(self, call: Call, device: torch.device) -> Tensor:
        """Return the teacher's logits, (batch, classes), for a call whose tensors are on ``device``.

        The teacher moves there on the first call; it is not cast or wrapped.

        Raises:
            UserError: if several teachers give logits of different shapes.
        """
        self._ready(device)
        assert self._run is not None
        found = [self._logits_of(module, asked, call) for module, asked in zip(self.modules, self._run, strict=True)]
        if len(found) == 1:
            return found[0]
        shapes = {tuple(x.shape) for x in found}
        if len(shapes) > 1:
            raise UserError(
                f"teachers give logits of shapes {sorted(shapes)}, expected one; they must know the same classes"
            )
        return torch.stack([w * x.float() for w, x in zip(self.weights, found, strict=True)]).sum(0)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the teacher's weights, computed once; of several, with their shares."""
        if self._fingerprint is None:
            each = [fingerprint(module) for module in self.modules]
            shares = "|".join(f"{w:.9g}*{x}" for w, x in zip(self.weights, each, strict=True))
            self._fingerprint = each[0] if len(each) == 1 else hashlib.sha256(shares.encode()).hexdigest()
        return self._fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_device": None, "_run": None}

    def _ready(self, device: torch.device) -> None:
        if self._device != device or self._run is None:
            for module in self.modules:
                module.to(device)
            self._run = [torch.compile(m) if self.compiled else m for m in self.modules]
            self._device = device
        for module in self.modules:
            if module.training:
                module.eval()

    def _logits_of(self, module: nn.Module, asked: Any, call: Call) -> Tensor:
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        if dtype is not None:  # a trainer in true half precision casts the batch, not the teacher
            call = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, call)
        with self._autocast():
            return logits_of(run(asked, filter_kwargs(module, call)), self.outputs, setting="teacher_outputs")

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is None or self._device is None:
            return contextlib.nullcontext()
        dtype = getattr(torch, self.precision)
        if dtype == torch.float32:
            return torch.autocast(self._device.type, enabled=False)
        return torch.autocast(self._device.type, dtype=dtype)


def ask(model: nn.Module, call: Call, outputs: str | int | None = None) -> Tensor:
    """Return a model's logits for a call, which may hold keywords that the model does not take.

    Args:
        model: as it is, with its mode and gradients.
        call: its arguments.
        outputs: name or position of the logits, where it returns several values.
    """
    return logits_of(run(model, filter_kwargs(model, call)), outputs)


def ask_with_labels(
    model: nn.Module, call: Call, labels: Tensor, outputs: str | int | None = None
) -> tuple[Tensor, Tensor]:
    """Return a model's logits for a call, and the loss that it makes itself of the keyword ``labels``.

    Raises:
        UserError: if it takes no labels, or returns no loss.
    """
    args, kwargs = filter_kwargs(model, (call[0], {**call[1], "labels": labels}))
    output = run(model, (args, kwargs)) if "labels" in kwargs else None
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.ndim:
        lacks = "takes no labels" if output is None else "returns no loss for labels, as a scalar"
        raise UserError(f"losses has 'own', and {type(model).__name__} {lacks}; leave 'own' out")
    rest = {name: value for name, value in output.items() if name != "loss"} if type(output) is dict else output
    return logits_of(rest, outputs), loss


def filter_kwargs(module: nn.Module, call: Call) -> Call:
    """Return ``call`` without the keywords that ``module.forward`` does not take, such as another family's."""
    args, kwargs = call
    if not kwargs:
        return call
    parameters = inspect.signature(module.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return call
    return args, {name: value for name, value in kwargs.items() if name in parameters}


def frozen(module: nn.Module) -> nn.Module:
    """Put ``module`` in eval mode without gradients, in place, and return it."""
    return module.eval().requires_grad_(False)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of every entry of the state dict, as hex.

    Equal for equal weights on any device and in any order of registration. Of weights in shards (FSDP2), to be asked
    on all ranks together.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            value = getattr(value, "full_tensor", lambda whole=value: whole)()
            digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_no_shared_parameters(student: nn.Module, *teachers: nn.Module) -> None:
    """Raise ``UserError`` if the student shares a parameter with a teacher: freezing that would freeze the student."""
    for teacher in teachers:
        own = {id(p) for p in teacher.parameters()}
        shared = [name for name, p in student.named_parameters() if id(p) in own]
        if shared:
            raise UserError(
                f"student and teacher share {len(shared)} parameters ({shared[0]!r} is one), expected none; "
                "give the student its own with copy.deepcopy"
            )


def check_same_teacher(saved: str | None, given: str | None) -> None:
    """Raise ``UserError`` unless the fingerprints of a checkpoint's teacher and of the one given are the same."""
    if saved != given:
        there, here = ("none" if each is None else each[:12] for each in (saved, given))
        raise UserError(
            f"the checkpoint's teacher is {there}, the one given is {here}; "
            "give the teacher that this student began with, or start again"
        )

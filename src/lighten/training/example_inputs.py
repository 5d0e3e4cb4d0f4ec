"""Example inputs of a module's part, taken from one run of the module's own step."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lighten.errors import UserError, one_line
from lighten.training.look import build, device_of, in_precision, run_step, step_of, transferred, unnoticed
from lighten.utils.batch import BatchFormat, Parts
from lighten.utils.inputs import Call, as_call, map_tensors
from lighten.utils.modules import find_module
from lighten.utils.preserve import preserved


def find_part(
    trainer: L.Trainer, pl_module: L.LightningModule, name: str | None, *, called: bool = False
) -> tuple[str, nn.Module, Call]:
    """Return name, module and example call of the part that a callback works on; runs in ``setup``.

    Args:
        trainer: knows the stage and its data.
        pl_module: its step runs on one batch, and what its parts are called with is noted. A module that makes its
            layers in ``setup`` or ``configure_model`` makes them now.
        name: of a submodule; ``None`` takes ``student`` where there is one, else the whole module, or the one part that
            learns where the step does not go through ``forward``.
        called: whether the whole module is taken only where the step itself calls ``forward``, not where that would do
            the same.

    Raises:
        UserError: as :func:`example_call`, for an unknown name, or if the step calls several parts and no ``forward``
            joins them.
    """
    try:
        return _find_part(trainer, pl_module, name, called)
    except UserError:
        if not build(trainer, pl_module):
            raise
    return _find_part(trainer, pl_module, name, called)


def example_call(trainer: L.Trainer, pl_module: L.LightningModule, target: nn.Module, *, samples: int = 2) -> Call:
    """Return the arguments that ``target`` gets while the stage's step runs on the first batch, on the module's device.

    Runs in ``setup``; the look leaves nothing behind. For the whole module ``example_input_array`` is taken where it is
    set and there is a ``forward``.

    Raises:
        UserError: if there is no batch, the step cannot be run on it, or it does not call ``target``.
    """
    array = pl_module.example_input_array
    if target is pl_module and array is not None and _has_forward(pl_module):
        return _try_array(pl_module, as_call(array))
    call, calls = _look(trainer, pl_module, target, samples)
    if call is None:
        called = ", ".join(map(repr, calls)) or "none of its parts"
        name = next(name for name, module in pl_module.named_modules() if module is target)
        raise UserError(
            f"{_step(trainer, pl_module)} does not call {name or 'the forward'!r}, it calls {called}; "
            "name one of these as module"
        )
    return call


def example_calls(
    trainer: L.Trainer, pl_module: L.LightningModule, target: nn.Module, *, samples: int = 128
) -> list[Call]:
    """Return arguments of ``target`` for the first ``samples`` samples of the stage's data, batch by batch.

    Raises:
        UserError: as :func:`example_call`.
    """
    found = []
    with _batches(trainer) as batches:
        for batch in batches:
            call = _watch(trainer, pl_module, target, _cut(batch, samples))[0]
            if call is not None:
                found.append(call)
            samples -= _size(batch) or samples
            if samples <= 0:
                break
    if not found:
        raise UserError(f"{_step(trainer, pl_module)} does not call {type(target).__name__}; give calibration inputs")
    return found


def _find_part(
    trainer: L.Trainer, pl_module: L.LightningModule, name: str | None, called: bool
) -> tuple[str, nn.Module, Call]:
    name, target = find_module(pl_module, name)
    array = None if called else pl_module.example_input_array
    if target is not pl_module or (array is not None and _has_forward(pl_module)):
        return name, target, example_call(trainer, pl_module, target)
    call, calls = _look(trainer, pl_module, target, 2, called=called)
    if call is not None:
        return name, target, call
    parts = _learning(pl_module, calls)
    if len(parts) == 1:
        part = parts[0]
        rank_zero_info(f"{_step(trainer, pl_module)} calls {part!r} and not the module's forward: taking that part")
        return part, pl_module.get_submodule(part), calls[part]
    if not parts:
        raise UserError(
            f"{_step(trainer, pl_module)} calls no part with weights on the first batch; name one as module"
        )
    raise UserError(
        f"{_step(trainer, pl_module)} calls {', '.join(map(repr, parts))}, joined by no forward; give the module a "
        f"forward that the step calls, or name one of them: module={parts[0]!r}"
    )


def _look(
    trainer: L.Trainer, pl_module: L.LightningModule, target: nn.Module, samples: int, *, called: bool = False
) -> tuple[Call | None, dict[str, Call]]:
    """Return the call of ``target`` on the first batch, or ``None``, and those of the parts that the step calls.

    A few samples serve as well as all. What fails on them, or where parts are left out at random, is tried otherwise.
    """
    with _batches(trainer) as batches:
        batch = next(batches, None)
        if batch is None:
            raise UserError("the data loader is empty; give it at least one batch")
        failed, seen = None, None
        for each, evaluates in ((_cut(batch, samples), False), (batch, False), (batch, True)):
            try:
                seen = _watch(trainer, pl_module, target, each, evaluates=evaluates, called=called)
            except UserError as error:
                failed = failed or error
            else:
                if seen[0] is not None or target is pl_module:
                    return seen
    if seen is None:
        assert failed is not None
        raise failed
    return seen


def _watch(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    target: nn.Module,
    batch: Any,
    *,
    evaluates: bool = False,
    called: bool = False,
) -> tuple[Call | None, dict[str, Call]]:
    """Run the step on ``batch`` and return the first call of ``target``, and of each part that no other part calls."""
    try:
        with unnoticed(trainer, pl_module):
            if evaluates or step_of(trainer, pl_module) != "training_step":
                pl_module.eval()
            batch = transferred(trainer, pl_module, batch)
            given = map_tensors(lambda t: t.detach().clone(), batch)
            state = torch.random.get_rng_state()
            calls = _calls(pl_module, target, lambda: run_step(trainer, pl_module, batch))
            if target is pl_module and "" not in calls and not called and _has_forward(pl_module):
                torch.random.set_rng_state(state)
                calls |= _as_the_step(trainer, pl_module, given, calls)
    except Exception as error:  # whatever a user's data, hooks and step raise
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{_step(trainer, pl_module)} could not be run on the first batch, to see what its parts are called with: "
            f"{one_line(error, 300) or type(error).__name__}; run it on one batch by hand to look closer"
        ) from error
    name = next(name for name, module in pl_module.named_modules() if module is target)
    call = calls.pop(name, None) if target is pl_module else calls.get(name)
    calls.pop("", None)
    return call, calls


def _as_the_step(
    trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, calls: dict[str, Call]
) -> dict[str, Call]:
    """Return the call of ``forward`` on the batch's inputs, if it does with the parts just what the step did."""
    args, kwargs = _parts(batch, pl_module).call
    try:
        with torch.no_grad(), in_precision(trainer, pl_module):
            again = _calls(pl_module, pl_module, lambda: pl_module(*args, **kwargs))
    except Exception:  # it takes something else
        return {}
    own = again.pop("")
    alike = again and all(name in calls and _equal(call, calls[name]) for name, call in again.items())
    return {"": own} if alike else {}


def _parts(batch: Any, pl_module: L.LightningModule) -> Parts:
    """Return the parts of a batch as the module names them; of others' modules the first part is its input."""
    named = getattr(pl_module, "batch_format", None)
    if named is None and isinstance(batch, list | tuple) and len(batch) > 2:
        named = BatchFormat(("input", "label", *["ignore"] * (len(batch) - 2)))
    return (named or BatchFormat()).split(batch)


def _calls(pl_module: L.LightningModule, target: nn.Module, run: Any) -> dict[str, Call]:
    """Return the first call of each module that is called by no other, of ``target`` and of ``pl_module``, by name."""
    seen: dict[str, Call] = {}
    depth = 0

    def watched(name: str, module: nn.Module) -> Any:
        forward = module.forward

        @wraps(forward)
        def noted(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if name not in seen and (depth == 0 or module is target):
                seen[name] = tree_map(_kept(module), (args, kwargs))
            inner = int(module is not pl_module)
            depth += inner
            try:
                return forward(*args, **kwargs)
            finally:
                depth -= inner

        return noted

    with ExitStack() as undo:
        for name, module in pl_module.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                undo.callback(_put_back, module, vars(module).get("forward"))
                module.forward = watched(name, module)
        run()
    return seen


def _put_back(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _kept(module: nn.Module) -> Any:
    """Return what copies a value out of a step, as ``module`` can be called with it outside of autocast."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def keep(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        lower = value.dtype in (torch.bfloat16, torch.float16)
        return value.detach().clone().to(dtype if lower else value.dtype)

    return keep


def _learning(pl_module: L.LightningModule, calls: dict[str, Call]) -> list[str]:
    """Return the parts with weights that learn; where none learns, those with weights."""
    weighted = [name for name in calls if any(True for _ in pl_module.get_submodule(name).parameters())]
    learning = [n for n in weighted if any(p.requires_grad for p in pl_module.get_submodule(n).parameters())]
    return learning or weighted


def _try_array(pl_module: L.LightningModule, call: Call) -> Call:
    args, kwargs = map_tensors(lambda t: t.to(device_of(pl_module)), call)
    try:
        with torch.no_grad(), preserved(pl_module):
            pl_module.eval()(*args, **kwargs)
    except Exception as error:  # whatever a user's forward raises
        raise UserError(
            f"{type(pl_module).__name__}.forward cannot be run on its example_input_array: {one_line(error, 300)}; "
            "set it to what forward takes, or leave it out"
        ) from error
    return args, kwargs


@contextmanager
def _batches(trainer: L.Trainer) -> Iterator[Iterator[Any]]:
    """Give the stage's batches as its loop makes them, of several loaders too; random numbers continue as before."""
    stage = str(trainer.state.fn.value)  # type: ignore[union-attr]
    loop = getattr(trainer, f"{stage}_loop")
    with isolate_rng():
        try:
            loader: Any = loop._data_source.dataloader()
        except Exception as error:  # whatever a user's hook raises
            raise UserError(f"the {stage}'s data loader could not be made: {one_line(error, 300)}") from error
        if not isinstance(loader, CombinedLoader):
            loader = CombinedLoader(loader, "max_size_cycle" if stage == "fit" else "sequential")
        drawn = [(generator, generator.get_state()) for each in loader.flattened for generator in _generators(each)]
        try:
            yield (batch for batch, _, _ in loader)
        finally:
            for generator, state in drawn:
                generator.set_state(state)


def _generators(loader: Any) -> list[torch.Generator]:
    batches = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = {id(g): g for h in holders if isinstance(g := getattr(h, "generator", None), torch.Generator)}
    return list(found.values())


def _cut(batch: Any, samples: int) -> Any:
    """Return the first samples of a batch whose tensors all have one length; another is left whole."""
    size = _size(batch)
    return batch if size is None or size <= samples else map_tensors(lambda t: t[:samples], batch)


def _size(batch: Any) -> int | None:
    lengths = {len(t) if t.ndim else None for t in tree_leaves(batch) if isinstance(t, Tensor)}
    return lengths.pop() if len(lengths) == 1 else None


def _equal(one: Call, other: Call) -> bool:
    ours, theirs = tree_leaves(one), tree_leaves(other)
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and (one is other or one == other)


def _has_forward(pl_module: L.LightningModule) -> bool:
    return is_overridden("forward", pl_module)


def _step(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    return f"{type(pl_module).__name__}.{step_of(trainer, pl_module)}"

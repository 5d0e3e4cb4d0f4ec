"""The subject of a search: a trained network, what it answers, and how it learns."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils._pytree import tree_map

from lighten.delivery.folders.about import about_data
from lighten.delivery.folders.model import load
from lighten.delivery.folders.own import done_to
from lighten.delivery.measure.latency import batch_of
from lighten.distillation.callback import Distill
from lighten.distillation.module import DistillationModule
from lighten.errors import UserError, one_line
from lighten.pruning.loss_arguments import without_loss_arguments
from lighten.quantization.post_training import modes_of
from lighten.search.splits import Splits, same
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.training.example_inputs import example_calls, find_part
from lighten.training.optimizer import OptimizerSettings
from lighten.utils.batch import COMMON, BatchFormat
from lighten.utils.clone import clone
from lighten.utils.compression import record_of
from lighten.utils.inputs import Call, ExampleInput, map_tensors, run

SOFT_WEIGHT = 0.9
"""Of the original's answers beside the labels."""
CALIBRATION = 512
"""Samples of the guide part that calibrate ranges and that sensitivities are measured on."""


@dataclass(frozen=True)
class Subject:
    """What is compressed.

    Attributes:
        network: the trained float network, in eval mode; never changed.
        task: what it answers; ``None`` where only the owner's own metric says how well.
        calls: of the network, for some samples of the guide part, batch by batch.
        about: further entries of its model folders.
        owner: the LightningModule of its user's own that trains it.
        part: its name in the owner.
        logged: the owner's own metric that says how good the network is.
    """

    network: nn.Module
    task: Task | None
    calls: tuple[Call, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    owner: L.LightningModule | None = None
    part: str = ""
    logged: str | None = None

    @property
    def example(self) -> ExampleInput:
        """Two samples, as the network takes them."""
        args, kwargs = map_tensors(lambda t: t[:2] if t.ndim else t, self.calls[0])
        return kwargs if kwargs and not args else args

    def some(self, samples: int) -> list[Call]:
        """Return the first of its calls, until they hold so many samples; the last one is cut."""
        kept: list[Call] = []
        for call in self.calls:
            kept.append(batch_of(call, min(size_of(call), samples)))
            samples -= size_of(call)
            if samples <= 0:
                break
        return kept

    @property
    def inputs(self) -> list[Any]:
        """Batches of inputs alone, as calibration takes them with :attr:`roles`."""
        return [kwargs if kwargs and not args else args for args, kwargs in self.calls]

    @property
    def roles(self) -> Sequence[str] | None:
        """What the parts of :attr:`inputs` are."""
        args, _ = self.calls[0]
        return ("input",) * len(args) if args else None

    def load(self, folder: Path) -> nn.Module:
        """Return the model of a folder that was made of this one."""
        return load(folder) if isinstance(record_of(self.network).spec, Mapping) else load(folder, model=self.network)

    def learner(
        self, student: nn.Module, *, lr: float, distil: bool
    ) -> tuple[L.LightningModule, str, list[L.Callback]]:
        """Return what trains ``student``, its name in that, and the callback that lets the original teach it, if any.

        Args:
            student: trained in place.
            lr: the highest learning rate; an owner's own optimizer keeps its own.
            distil: whether the original teaches.
        """
        teacher = clone(self.network) if distil else None
        if self.owner is None:
            assert self.task is not None
            module = DistillationModule(
                student, teacher, soft_weight=SOFT_WEIGHT if distil else 0.0, task=self.task,
                optimizer=OptimizerSettings(lr=lr),
            )  # fmt: skip
            return module, "student", []
        if not self.part:
            assert isinstance(student, L.LightningModule)
            owner = student
        else:
            owner = self.copied_owner()
            owner.set_submodule(self.part, student)
        if teacher is None or self.task is None:
            return owner, self.part, []
        return owner, self.part, [Distill(teacher, weight=1.0, module=self.part or None, task=self.task)]

    def guided_metric(self, trainer: L.Trainer) -> float | None:
        """Return the leading metric of the last validation; ``None`` where there was none."""
        name = self.logged or (f"student/{self.task.metric}" if self.task is not None and self.owner is None else None)
        value = trainer.callback_metrics.get(name) if name is not None else None
        return None if value is None else float(value)

    def copied_owner(self) -> L.LightningModule:
        """Return a copy of the LightningModule that no trainer knows."""
        copied = clone(self.owner) if self.owner is not None else None
        assert isinstance(copied, L.LightningModule)
        copied._trainer = None
        return copied


class GuidedData(L.LightningDataModule):
    """A data module's training part, and the guide part for validation; nothing is split again.

    Args:
        data: the user's, set up already; what it does to batches is done.
        splits: of it.
        validation: another part than the guide.
    """

    def __init__(self, data: L.LightningDataModule, splits: Splits, *, validation: Any = None) -> None:
        super().__init__()
        self._data, self._validation = data, splits.guide if validation is None else validation
        for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
            setattr(self, hook, getattr(data, hook))

    def train_dataloader(self) -> Any:
        """Return the data module's own."""
        return self._data.train_dataloader()

    def val_dataloader(self) -> Any:
        """Return what is validated on."""
        return self._validation


def subject_of(
    model: nn.Module,
    data: L.LightningDataModule,
    splits: Splits,
    *,
    task: str | Task | None = None,
    module: str | None = None,
    logged: str | None = None,
) -> Subject:
    """Return what is compressed.

    Args:
        model: a network, or a LightningModule that trains one.
        data: its data module.
        splits: of the data.
        task: what is answered; by default what the data module or the LightningModule says, else classification.
        module: which part of a LightningModule is compressed.
        logged: the metric of the LightningModule's own that says how good it is, so that no task is needed.

    Raises:
        UserError: if it is compressed already, is no network, or its batches cannot be taken apart.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model is of type {type(model).__name__}, expected a network or a LightningModule")
    network = getattr(model, "_orig_mod", model)
    if done_to(network) or modes_of(network):
        raise UserError(
            f"{type(network).__name__} is compressed already (pruned or quantized); give the dense float model"
        )
    given = task if task is not None else getattr(data, "task", getattr(network, "task", None))
    found = task_of(given) if given is not None else None if logged else task_of("classification")
    if not logged:
        _check_unchanged(data, splits)
    about = about_data(data) if hasattr(data, "fingerprint") and hasattr(data, "class_names") else {}
    if found is not None:
        about = {"task": found.settings(), **about}
    if not isinstance(network, L.LightningModule):
        if module is not None:
            raise UserError(
                f"module={module!r}: names a part of a LightningModule, and the model is a network; leave it out"
            )
        if logged:
            raise UserError(
                "metric= names what a LightningModule logs, and the model is a network; give its task instead"
            )
        calls = tuple(_calls(splits.guide, CALIBRATION))
        alone = _trainable(clone(network).cpu().eval())
        _check_takes(alone, calls[0])
        return Subject(alone, found, calls, about)
    if not is_overridden("validation_step", network):
        raise UserError(
            f"{type(network).__name__} has no validation_step, by which compress sees what its parts are called with; "
            "write one"
        )
    look = _Look(module)
    owner = clone(network)
    assert isinstance(owner, L.LightningModule)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(**quiet, accelerator="cpu", devices=1, limit_val_batches=1, callbacks=[look]).validate(
            owner, datamodule=GuidedData(data, splits), verbose=False
        )
    whole = clone(network).cpu()
    assert isinstance(whole, L.LightningModule)
    _trainable(whole)
    part = clone(whole.get_submodule(look.part)).eval()
    kept = without_loss_arguments(part, look.calls[0])  # a file takes no labels
    return Subject(part, found, tuple(as_many(call, kept) for call in look.calls), about, whole, look.part, logged)


def _trainable(network: nn.Module) -> nn.Module:
    """Return the network; where all of it is frozen, as it was only used, all of it is trained."""
    if not any(weight.requires_grad for weight in network.parameters()):
        network.requires_grad_(True)
    return network


def _check_takes(network: nn.Module, call: Call) -> None:
    """Raise ``UserError`` where a network does not run on the data."""
    try:
        with torch.no_grad():
            run(network, call)
    except UserError as error:  # of inputs that its forward does not know
        raise UserError(f"{str(error).partition(';')[0]}; {COMMON}, by the names that forward has") from error
    except Exception as error:  # whatever its forward raises
        raise UserError(
            f"the model {type(network).__name__} does not run on the data: {one_line(error, 300)}; "
            "give the data that it was trained on, and weights in float32"
        ) from error


def _check_unchanged(data: L.LightningDataModule, splits: Splits) -> None:
    """Raise ``UserError`` where a data module changes the batches that a Trainer evaluates: no file gets that."""
    for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
        if not is_overridden(name, data):
            continue
        batch = next(iter(splits.guide))
        before = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, batch)
        try:
            after = getattr(data, name)(batch, 0)
        except Exception:  # it looks at a trainer: perhaps it is for training alone
            continue
        if not same(before, after):
            raise UserError(
                f"{type(data).__name__}.{name} changes the batches that are evaluated, which files and measurements do "
                "not get; do it in the data set or its collate_fn, or in training alone (self.trainer.training)"
            )


class _Look(L.Callback):
    """Finds the part, and what it is called with."""

    def __init__(self, module: str | None) -> None:
        self.module, self.part = module, ""
        self.calls: list[Call] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.part, target, _ = find_part(trainer, pl_module, self.module, called=True)
        self.calls = example_calls(trainer, pl_module, target, samples=CALIBRATION)


def as_many(call: Call, kept: Call) -> Call:
    """Return a call with the arguments alone that ``kept`` has."""
    return call[0][: len(kept[0])], {name: value for name, value in call[1].items() if name in kept[1]}


def size_of(batch: Any) -> int:
    """Return how many samples a batch or call has, by its first tensor."""
    held = [t for t in torch.utils._pytree.tree_leaves(batch) if isinstance(t, torch.Tensor) and t.ndim]
    return len(held[0]) if held else 1


def _calls(batches: Any, samples: int) -> Iterator[Call]:
    form = BatchFormat(nameable=False)
    for batch in batches:
        call = form.labelled(batch).call
        size = size_of(call)
        yield batch_of(call, min(size, samples))
        samples -= size
        if samples <= 0:
            return

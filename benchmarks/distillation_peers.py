"""Distillation beside a loop by hand and torchdistill: ``python benchmarks/distillation_peers.py [step] [accuracy]``.

``step``: student and teacher of ``recipe=distil_cnn``, in processes that take turns batch by batch: fits on labels
alone, with the teacher asked at every step and with its answers kept, as in ``distillation.py cache``; a loop by hand,
with the teacher asked and without; and torchdistill's box, set up as in its examples. Steps of the epochs after the
first count. ``accuracy``: from the same weights, the same images and learning rates, by seeds: soft labels by a fit, by
the loop and by torchdistill, and labels alone; the teacher is the dense ResNet-20 that ``pruning.py`` trains.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import distillation
import torch
import torch.nn.functional as F
from distillation import ASKED, EPOCHS, KEPT, PLAIN
from pruning import DENSE_EPOCHS, _build, _data
from quantization import _dense
from rows import Row, add_row, command, deviation, width
from step_cost import Turn, in_turn
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lighten import DistillationModule, build_data
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.optimizer import OptimizerSettings

LOOP, LOOP_ALONE, THEIRS = "loop by hand, teacher asked", "loop by hand, labels alone", "torchdistill, teacher asked"
TEMPERATURE, SOFT = 4.0, 0.9
STUDENT = 8
"""Width of the student of ``accuracy``."""


def main() -> None:
    """Measure and print."""
    parts = {"step": _step, "accuracy": _accuracy}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="part", help=", ".join(parts))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="step")
    parser.add_argument("--seeds", type=int, default=3, help="accuracy")
    parser.add_argument("--epochs", type=int, default=3, help="accuracy: of the student")
    parser.add_argument("--dense-epochs", type=int, default=DENSE_EPOCHS, help="accuracy: of the teacher")
    parser.add_argument("--precision", default="auto", help="accuracy: auto, 32-true, bf16-mixed")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"), help="where teachers stay")
    parser.add_argument("--quick", action="store_true", help="little of everything; the figures mean nothing")
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    arguments = parser.parse_args()
    arguments.precision = str(resolve_precision(arguments.precision))
    arguments.batches = 0
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for part in arguments.parts or parts:
        print(f"\n{part}", flush=True)
        parts[part](arguments)


def loop(
    student: nn.Module, teacher: nn.Module | None, batches: Any, settings: OptimizerSettings, steps: int, precision: str
) -> Iterator[None]:
    """Train as one writes it by hand; yields before each step."""
    made: Any = settings(student, steps)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    student.train()
    for images, labels in batches:
        yield
        with cast:
            logits = student(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(images)
                soft = F.kl_div(
                    F.log_softmax(logits.float() / TEMPERATURE, 1), F.softmax(answers.float() / TEMPERATURE, 1),
                    reduction="batchmean",
                )  # fmt: skip
                loss = SOFT * TEMPERATURE**2 * soft + (1 - SOFT) * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def torchdistill(
    student: nn.Module, teacher: nn.Module, data: TensorDataset, batch: int, epochs: int, lr: float
) -> Iterator[None]:
    """Train by the box of torchdistill 1.1, configured as its examples of KD; yields before each step."""
    from torchdistill.core.distillation import get_distillation_box

    term = {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".",
            "teacher_module_io": "output", "temperature": TEMPERATURE, "alpha": 1 - SOFT, "reduction": "batchmean",
        },
    }  # fmt: skip
    loader = {"sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
              "kwargs": {"batch_size": batch, "num_workers": 0, "drop_last": True}}  # fmt: skip
    config = {
        "num_epochs": epochs, "train_data_loader": {"dataset_id": "train", **loader},
        "val_data_loader": {"dataset_id": "train", **loader},
        "teacher": {"requires_grad": False, "forward_hook": {"input": [], "output": ["."]}},
        "student": {"forward_hook": {"input": [], "output": ["."]}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": lr, "momentum": 0.9, "nesterov": True}},
        "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": epochs * (len(data) // batch)},
                      "scheduling_step": 1},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": term, "weight": 1.0}}}},
    }  # fmt: skip
    box = get_distillation_box(teacher, student, {"train": data}, config, torch.device("cpu"), None, False, 1.0)
    for epoch in range(epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, more in box.train_data_loader:
            yield
            box.post_forward_process(box(images, labels, more))
        box.post_epoch_process()


def _step(arguments: argparse.Namespace) -> None:
    names = [PLAIN, ASKED, KEPT, LOOP_ALONE, LOOP]
    failed = {}
    if find_spec("torchdistill"):
        names.append(THEIRS)
    else:
        failed[THEIRS] = "not installed: pip install torchdistill"
    times: dict[str, Any] = in_turn(_job, names, arguments)
    failed |= {name: found for name, found in times.items() if isinstance(found, str)}
    times = {name: found for name, found in times.items() if not isinstance(found, str)}
    steps = len(times[PLAIN]) // EPOCHS
    later = {name: [1e3 * seconds for seconds in found[steps:]] for name, found in times.items()}
    medians, wide = ({name: f(found) for name, found in later.items()} for f in (statistics.median, width))
    print(f"batch {arguments.batch}, {arguments.precision}, {arguments.threads} threads, {steps} steps an epoch\n")
    print("| | step, epochs 2 to 5 | against the loop without a teacher |\n|---|---:|---:|")
    for name, found in medians.items():
        print(f"| {name} | {found:.1f} ms | {found / medians[LOOP_ALONE]:.3f} |")
    print("".join(f"| {name} | {words} | |\n" for name, words in failed.items()))
    ours, wide["lighten"] = medians.pop(KEPT), wide.pop(KEPT)
    claim = f"distillation step with kept answers, batch {arguments.batch}, epochs 2 to {EPOCHS}"
    add_row(arguments.json, Row("distil", claim, "ms", ours, {**medians, **failed}, wide, command=command()))


def _job(name: str, arguments: argparse.Namespace, mine: Any, following: Any, answers: Any) -> None:
    if name in (PLAIN, ASKED, KEPT):
        distillation._job(name, arguments, mine, following, answers)
        return
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    data: Any = build_data("fashion_mnist", batch_size=arguments.batch, seed=0, augment=False)
    data.setup("fit")
    count = 4 if arguments.quick else len(data.train_dataloader())
    turn, student, teacher = Turn(mine, following), distillation._model(32, 1), distillation._model(40, 2).eval()
    turns, words = 0, ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            settings = OptimizerSettings("sgd", lr=0.01)
            if name == THEIRS:
                images = TensorDataset(*_all(data.train_dataloader()))
                steps = torchdistill(student, teacher, images, arguments.batch, EPOCHS, 0.01)
            else:
                batches = _first(data, count, EPOCHS)
                taught = teacher if name == LOOP else None
                steps = loop(student, taught, batches, settings, EPOCHS * count, arguments.precision)
            for _ in steps:
                if turns == EPOCHS * count:
                    break
                turn.take()
                turns += 1
    except Exception as error:  # of a library's own
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    turn.leave()
    for _ in range(EPOCHS * count - turns):  # the others' turns go through this place all the same
        mine.acquire()
        following.release()
    answers.put((name, words or turn.times))


def _accuracy(arguments: argparse.Namespace) -> None:
    ways: dict[str, Callable[..., None]] = {
        "lighten": _by_fit, LOOP: _by_loop, "labels alone, loop by hand": _by_loop_alone, "torchdistill": _by_box,
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    for seed in range(1 if arguments.quick else arguments.seeds):
        data = _data(seed)
        data.setup("fit")
        teacher = (_build(0) if arguments.quick else _dense(0, _data(0), arguments)).eval()
        images, labels = _all(data.test_dataloader())
        for name, train in ways.items():
            student = _build(seed, width=STUDENT)
            try:
                train(student, teacher, data, arguments)
            except Exception as error:  # of a library's own
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
                continue
            with torch.no_grad():
                found[name].append(100 * float((student.eval()(images).argmax(1) == labels).float().mean()))
            print(f"  seed {seed}, {name}: {found[name][-1]:.2f} %", flush=True)
    figures: dict[str, float | str] = {name: statistics.mean(v) for name, v in found.items() if v}
    wide = {name: deviation(v) for name, v in found.items() if v}
    figures |= (
        failed if find_spec("torchdistill") else {**failed, "torchdistill": "not installed: pip install torchdistill"}
    )
    claim = f"ResNet-20 of width {STUDENT} at 14x14, taught by one of width 16, equal steps"
    mine = figures.pop("lighten")
    add_row(arguments.json, Row("distil", claim, "%", mine, figures, wide, "higher", command()))


SETTINGS = OptimizerSettings("sgd", lr=0.1, weight_decay=5e-4)


def _by_fit(student: nn.Module, teacher: nn.Module, data: Any, arguments: argparse.Namespace) -> None:
    module = DistillationModule(student, teacher, temperature=TEMPERATURE, soft_weight=SOFT, optimizer=SETTINGS)
    settings = {
        "max_epochs": _epochs(arguments), "precision": arguments.precision, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0,
        "limit_train_batches": 4 if arguments.quick else 1.0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        make_trainer(folder=folder, stage="fit", settings=settings, seed=data.seed).fit(module, data)
    student.cpu()


def _by_loop(student: nn.Module, teacher: nn.Module | None, data: Any, arguments: argparse.Namespace) -> None:
    loader = data.train_dataloader()
    count = 4 if arguments.quick else len(loader)
    batches = _first(data, count, _epochs(arguments))
    for _ in loop(student, teacher, batches, SETTINGS, count * _epochs(arguments), arguments.precision):
        pass


def _by_loop_alone(student: nn.Module, teacher: nn.Module, data: Any, arguments: argparse.Namespace) -> None:
    _by_loop(student, None, data, arguments)


def _by_box(student: nn.Module, teacher: nn.Module, data: Any, arguments: argparse.Namespace) -> None:
    images = TensorDataset(*_all(data.train_dataloader()))
    for _ in torchdistill(student, teacher, images, 128, _epochs(arguments), SETTINGS.lr):
        pass


def _epochs(arguments: argparse.Namespace) -> int:
    return 1 if arguments.quick else int(arguments.epochs)


def _first(data: Any, count: int, epochs: int) -> Iterator[list[Tensor]]:
    """Yield images and labels of so many batches an epoch."""
    for _ in range(epochs):
        for batch in itertools.islice(data.train_dataloader(), count):
            yield batch[:2]


def _all(loader: Any) -> list[Tensor]:
    """Return all images and labels of a loader."""
    return [torch.cat(parts) for parts in zip(*loader, strict=True)][:2]


if __name__ == "__main__":
    main()

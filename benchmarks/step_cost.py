"""What compression costs while training: ``python benchmarks/step_cost.py [--threads 2] [--rounds 20]``.

One ResNet student is trained side by side, step by step in turn: plain cross-entropy; distilled; distilled, pruned and
quantized with all callbacks active. The price is the last, over the plain step plus the teacher's forward. Medians of
many steps; the first of each are left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lighten import build_model, plan_pruning, quantize_
from lighten.distillation.loss import cross_entropy, soft_labels
from lighten.pruning.mask import Masks, mask_
from lighten.quantization.insert import bank_of
from lighten.quantization.sites import Stage

SHAPE = (1, 28, 28)
Step = Callable[[], float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stem-stride", type=int, default=2, help="1 for full resolution")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    options = {"num_classes": 10, "input_shape": SHAPE, "stem_stride": arguments.stem_stride}
    images = torch.randn(arguments.batch, *SHAPE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (arguments.batch,))
    teacher = build_model("resnet20", width=32, **options).eval().to(memory_format=torch.channels_last)
    steps: dict[str, Step] = {
        "plain step": training(build_model("resnet20", **options), None, images, labels, compressed=False),
        "teacher's forward": forward(teacher, images),
        "distilled": training(build_model("resnet20", **options), teacher, images, labels, compressed=False),
        "distilled + pruned + int8": training(
            build_model("resnet20", **options), teacher, images, labels, compressed=True
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.rounds + 3):
        for name, step in steps.items():
            seconds = step()
            if number >= 3:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"ResNet-20 width 16, teacher width 32, batch {arguments.batch}, float32, {arguments.threads} threads, "
          f"{arguments.rounds} rounds, torch {torch.__version__}")  # fmt: skip
    for name, seconds in median.items():
        print(f"{name:28} {1e3 * seconds:8.1f} ms   {seconds / median['plain step']:.2f} x plain")
    whole = median["plain step"] + median["teacher's forward"]
    print(f"all callbacks / (plain step + teacher's forward) = {median['distilled + pruned + int8'] / whole:.2f}")


def forward(model: torch.nn.Module, images: torch.Tensor) -> Step:
    """Return a step that only looks."""

    def step() -> float:
        begin = time.perf_counter()
        with torch.no_grad():
            model(images)
        return time.perf_counter() - begin

    return step


def training(
    student: torch.nn.Module,
    teacher: torch.nn.Module | None,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    compressed: bool,
) -> Step:
    """Return a training step; ``compressed`` does after and within it what the callbacks do at full strength."""
    student = student.train().to(memory_format=torch.channels_last)
    masks = None
    if compressed:
        plan = plan_pruning(student, images[:2], 0.5)
        quantize_(student, example_input=images[:2])
        mask_(student, plan)
        masks = Masks(student, plan)
        bank_of(student).stage = Stage.OBSERVE
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> float:
        begin = time.perf_counter()
        if masks is not None:
            bank_of(student).observing = True
        logits = student(images)
        if teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            with torch.no_grad():
                targets = teacher(images)
            loss = 0.9 * soft_labels(logits, targets, 4.0) + 0.1 * cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if masks is not None:
            masks.apply_()
            bank = bank_of(student)
            bank.update()
            bank.observing, bank.stage = False, Stage.ON
        return time.perf_counter() - begin

    return step


if __name__ == "__main__":
    main()

"""What images of one's own cost: ``python benchmarks/images.py [--images 2000] [--rounds 5] [--steps 10]``.

JPEG files of 500×375 pixels, in ten folders, are written into a temporary folder: smooth shapes with a little noise,
about as many bytes as photographs. Then, for ``data: images``:

- seconds from nothing to the end of the first training step: found, decoded, split, summed up, first batch, step; with
  an empty cache, and again with the one that the first time has left;
- at 224 pixels, batches of 32 and two workers: step time with the loader, augmentation included, over that of the same
  network fed with batches that lie ready in memory. Beginnings of epochs of both take turns, so that what disturbs one
  disturbs the other; medians and their spread are printed;
- what others on the machine disturb less: the processor time of making a batch over that of a step.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from lighten import build_data, build_model
from lighten.data import own_image_data  # noqa: F401 (what it imports is no part of the time)
from lighten.utils.machine import cores, processor

CLASSES, BATCH, WORKERS, SIDE = 10, 32, 2, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each kind")
    parser.add_argument(
        "--steps", type=int, default=10, help="steps of an epoch that are timed; the rest is only fetched"
    )
    parser.add_argument("--threads", type=int, default=cores(), help="of training")
    parser.add_argument("--student", default="cnn", help="name of the network")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{processor()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as place:
        os.environ["LIGHTEN_CACHE"] = f"{place}/cache"
        size = write_images(Path(place) / "images", given.images)
        print(f"{given.images} JPEG files of 500×375, {size / given.images / 1e3:.0f} kB each")
        for cache in ("empty", "filled"):
            print(f"cache {cache}: {first_step(place, given.student)}")
        compare_epochs(place, given.student, given.rounds, given.steps)


def write_images(folder: Path, count: int) -> int:
    """Write ``count`` JPEG files into ten folders; return their bytes."""
    draw = np.random.default_rng(0)
    size = 0
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        fine = np.asarray(coarse) + draw.normal(0, 6, (375, 500, 3))
        path = folder / f"class {number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(path, quality=85)
        size += path.stat().st_size
    return size


def build(place: str) -> Any:
    return build_data("images", folder=f"{place}/images", size=SIDE, batch_size=BATCH, workers=WORKERS)


def network(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(name, num_classes=CLASSES, input_shape=(3, SIDE, SIDE))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def first_step(place: str, student: str) -> str:
    model, optimizer = network(student)
    begun, busy = time.perf_counter(), time.process_time()
    data = build(place)
    data.prepare_data()
    data.setup("fit")
    prepared, busy = time.perf_counter(), time.process_time() - busy
    batch = next(iter(data.train_dataloader()))
    fetched = time.perf_counter()
    step(model, optimizer, batch)
    ended = time.perf_counter()
    return (
        f"first step after {ended - begun:.1f} s: found, decoded and split in {prepared - begun:.1f} s (processor "
        f"time {busy:.1f} s), first batch {fetched - prepared:.1f} s, step {ended - fetched:.1f} s"
    )


def compare_epochs(place: str, student: str, rounds: int, steps: int) -> None:
    data = build(place)
    data.setup("fit")
    loader = data.train_dataloader()
    ready = list(itertools.islice(loader, steps))
    model, optimizer = network(student)
    step(model, optimizer, ready[0])
    seconds: dict[str, list[float]] = {"memory": [], "loader": []}
    for epoch in range(1, rounds + 1):
        loader.order.set_epoch(epoch)
        for kind, batches in (("memory", ready), ("loader", loader)):
            seconds[kind].append(time_steps(model, optimizer, batches, steps) / steps)
    for kind, each in seconds.items():
        print(f"{kind}: {1e3 * statistics.median(each):.0f} ms a step of {BATCH} ({spread(each, 1e3)})")
    ratios = [with_loader / fed for with_loader, fed in zip(seconds["loader"], seconds["memory"], strict=True)]
    print(f"{student}: loader over memory {statistics.median(ratios):.3f} ({spread(ratios)}), {WORKERS} workers")
    compare_processor_time(data.train_set, model, optimizer, ready[0])


def time_steps(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Any], steps: int) -> float:
    begun, taken = time.perf_counter(), 0.0
    for done, batch in enumerate(batches, 1):
        if done <= steps:
            step(model, optimizer, batch)
        if done == steps:
            taken = time.perf_counter() - begun
    return taken


def compare_processor_time(dataset: Any, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    times = [time.process_time()]
    for epoch in range(5):
        dataset.__getitems__([(epoch, sample) for sample in range(BATCH)])
    times.append(time.process_time())
    for _ in range(3):
        step(model, optimizer, batch)
    times.append(time.process_time())
    fetch, train = (times[1] - times[0]) / 5, (times[2] - times[1]) / 3
    print(f"processor time: {1e3 * fetch:.0f} ms a batch, {1e3 * train:.0f} ms a step, {fetch / train:.1%}")


def spread(values: list[float], scale: float = 1.0) -> str:
    return f"{scale * min(values):.3g} to {scale * max(values):.3g}"


if __name__ == "__main__":
    main()

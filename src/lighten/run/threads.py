"""Threads of a run on the processor: two that wait for each other beside another program take many times as long."""

import os
import time
from pathlib import Path

import torch

from lighten.delivery.folders.run import read_json, write_json
from lighten.recipe.schema import Recipe
from lighten.utils.machine import busy_cores, cores

THREADS = "threads.json"
"""File of a run folder: with how many threads it began, so that a resumed run sums in the same order."""
LOOK = 0.5
"""Seconds that other programs are watched for."""


def settle_threads(recipe: Recipe, folder: Path) -> str | None:
    """Leave busy cores to whoever has them; return what was decided, in a line, or ``None`` where all stays.

    A run with ``OMP_NUM_THREADS``, of several processes or on a GPU keeps the threads that it has.
    """
    alone = recipe.trainer.devices == 1 and recipe.trainer.num_nodes == 1
    on_gpu = recipe.trainer.accelerator != "cpu" and torch.cuda.is_available()
    if "OMP_NUM_THREADS" in os.environ or not alone or on_gpu:
        return None
    path, whole = folder / THREADS, torch.get_num_threads()
    if path.exists():
        torch.set_num_threads(int(read_json(path, made_by="lighten train recipe=…")["threads"]))
        return None
    busy = busy_cores(LOOK, wait=time.sleep)
    threads = max(1, min(whole, cores() - round(busy)))
    write_json(path, {"schema": 1, "threads": threads})
    if threads == whole:
        return None
    torch.set_num_threads(threads)
    return (
        f"{round(busy)} of {cores()} cores are busy: this run takes {threads} of {whole} threads, as one that waits "
        f"for a core holds up the others; OMP_NUM_THREADS={whole} insists"
    )

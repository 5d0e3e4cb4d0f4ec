"""What detectors of ``transformers`` go through: ``python benchmarks/detectors.py [FAMILY …]``, all by default.

For each, from a small config: seconds of the processor to plan at amount 0.5, the share of multiply-accumulates that
goes, how far the masked and the cut network are apart, seconds to write the files, whether they take any batch, and how
far they are off in their runtimes. ``--why`` prints what is left alone, and why.
"""

import argparse
import time
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detector_networks import FAMILIES, apart, detector, images
from torch import nn

from lighten import UserError, export, mask_, plan_pruning, shrink
from lighten.delivery.runtimes.runners import open_runner
from lighten.utils.clone import clone


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--why", action="store_true", help="print what is left alone")
    parser.add_argument("--targets", nargs="*", default=["onnx"])
    arguments = parser.parse_args()
    print("| family | parameters | groups | plan | MACs cut | parameters cut | float32 | float64 | files |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for family in arguments.families or FAMILIES:
        print(_row(family, arguments), flush=True)


def _row(family: str, arguments: argparse.Namespace) -> str:
    model, x = detector(family), images()
    size = sum(p.numel() for p in model.parameters())
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            plan = plan_pruning(model, x, arguments.amount)
        except UserError as error:
            return f"| {family} | {size / 1e3:.0f} k | {error} | {time.process_time() - begun:.1f} s | | | | | |"
        seconds = time.process_time() - begun
        small = shrink(model, plan).eval()
    if arguments.why:
        for warned in said:
            print(f"    warned: {str(warned.message)[:300]}")
        reasons = Counter(plan.frozen.values())
        for why, count in reasons.most_common():
            layers = [layer for layer, each in plan.frozen.items() if each == why]
            print(f"    {count}x {why[:300]}: {', '.join(layers[:4])}")
    gaps = [_gap(model, small, plan, x, dtype) for dtype in (torch.float32, torch.float64)]
    cut = sum(p.numel() for p in small.parameters()) / size
    files = "; ".join(_file(small, x, target) for target in arguments.targets)
    return (
        f"| {family} | {size / 1e3:.0f} k | {len(plan.groups)} | {seconds:.1f} s | {plan.saved['macs']:.1%} | "
        f"{1 - cut:.1%} | {gaps[0]:.0e} | {gaps[1]:.0e} | {files} |"
    )


@torch.no_grad()
def _gap(model: nn.Module, small: nn.Module, plan: object, x: torch.Tensor, dtype: torch.dtype) -> float:
    masked, cut = clone(model).to(dtype).eval(), clone(small).to(dtype).eval()
    mask_(masked, plan)
    return apart(masked(x.to(dtype)), cut(x.to(dtype)))


@torch.no_grad()
def _file(model: nn.Module, x: torch.Tensor, target: str) -> str:
    suffix = {"onnx": "onnx", "openvino": "xml", "litert": "tflite", "executorch": "pte", "pt2": "pt2"}[target]
    begun = time.perf_counter()
    with TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            path = export(model, x, Path(folder) / f"model.{suffix}", target=target)
        except UserError as error:
            return f"{target}: {str(error)[:260]}"
        seconds = time.perf_counter() - begun
        more = images(5)
        with open_runner(path) as runner:
            found = runner.run_all(runner.feed(((more,), {})))[0]
            batch = getattr(runner, "batch", 1)
        gap = apart(torch.from_numpy(found), model(more))
    fixed = [str(w.message)[:300] for w in said if "batch" in str(w.message)]
    return f"{target}: {seconds:.1f} s, batch {batch or 'any'}, {gap:.0e}{' (' + fixed[0] + ')' if fixed else ''}"


if __name__ == "__main__":
    main()

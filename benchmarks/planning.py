"""What ``plan_pruning`` costs: ``python benchmarks/planning.py [NETWORK …]``, those of ``NETWORKS`` by default.

Processor seconds of tracing (``torch.export``), of all else that planning does at amount 0.5, and of one forward and
backward pass at the example's size; and how many such passes all else is worth. ``torchvision``'s networks get one
image of 224 x 224; of other libraries any network of ``foreign.py`` can be named.
"""

import argparse
import re
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from foreign_networks import build, import_libraries, randomise_
from foreign_vision import torchvision
from torch import Tensor, nn

from lighten import UserError, plan_pruning
from lighten.pruning import groups
from lighten.utils.inputs import as_call, leaves_of

NETWORKS = (
    "torchvision/resnet50", "torchvision/vgg11", "torchvision/shufflenet_v2_x1_0", "torchvision/vit_b_32",
    "torchvision/maxvit_t", "torchvision/swin_t", "transformers/bert", "transformers/mobilevit", "transformers/d_fine",
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import_libraries()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    versions = [f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers")]
    print(f"{processor}, {arguments.threads} threads, {', '.join(versions)}; seconds of the processor\n")
    print("| network | parameters | groups | tracing | planning | forward, backward | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in arguments.networks:
        print(_row(name), flush=True)


def _row(name: str) -> str:
    network, example = _made(name)
    size = sum(p.numel() for p in network.parameters()) / 1e6
    _step(network, example)
    step = _seconds(lambda: _step(network, example))
    network.zero_grad(set_to_none=True)
    traces: list[float] = []
    export = groups.export

    def timed(*given: Any) -> Any:
        begun = time.process_time()
        try:
            return export(*given)
        finally:
            traces.append(time.process_time() - begun)

    groups.export = timed
    found: list[str] = []
    try:
        whole = _seconds(lambda: found.append(str(len(plan_pruning(network, example, amount=0.5).groups))))
    except UserError as error:
        return f"| {name} | {size:.1f} M | {str(error)[:80]} | | | {step:.2f} s | |"
    finally:
        groups.export = export
    traced = sum(traces)
    rest = whole - traced
    return f"| {name} | {size:.1f} M | {found[0]} | {traced:.1f} s | {rest:.1f} s | {step:.2f} s | {rest / step:.1f} |"


def _made(name: str) -> tuple[nn.Module, Any]:
    library, _, own = name.partition("/")
    torch.manual_seed(0)
    if library != "torchvision":
        network, batch, _ = build(name)
        return network, batch(2)
    network = torchvision.models.get_model(own, weights=None)
    randomise_(network)
    return network.eval(), torch.randn(1, 3, 224, 224)


def _step(network: nn.Module, example: Any) -> None:
    args, kwargs = as_call(example)
    outputs = [v for v in leaves_of(network(*args, **kwargs)) if isinstance(v, Tensor) and v.requires_grad]
    sum(v.float().square().mean() for v in outputs).backward()


def _seconds(work: Any) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()

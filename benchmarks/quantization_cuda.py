"""What training through int8 costs on a GPU: ``python benchmarks/quantization_cuda.py [--precision bf16-mixed …]``.

Whole steps first (forward, backward, optimizer, ranges), in one process, in turn, each waited for, medians: plain;
through int8 while ranges follow the data, and once they are frozen; and with fake-quantization written out in tensor
operations instead of fused kernels. Then an activation alone, rounded and observed in several ways: time on the GPU,
time that the processor takes to launch it, and how many results differ from float32 arithmetic. Then a layer's weight.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from quantization import Job, Step, _encoder_job, _resnet_job
from torch import Tensor, nn
from triton.testing import do_bench

from lighten.quantization import fake_quant, fused, observe, parameters

WARM_UP = 10
SCALE, ZERO_POINT = 0.05, 100
SHAPES = ((128, 16, 28, 28), (1024, 64, 28, 28))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["bf16-mixed", "32-true"])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    torch.manual_seed(0)
    jobs = (_resnet_job(128), _resnet_job(1024, width=64), _encoder_job(16), _encoder_job(64, width=768, layers=6))
    for job in jobs:
        for precision in arguments.precision:
            _whole_steps(job, precision, arguments.steps)
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            _activation(shape, dtype)
    for width in (16, 512):
        _weight(width)


def _whole_steps(job: Job, precision: str, rounds: int) -> None:
    plain, follows, frozen, written_out = (
        Step(job, ranges, precision, device="cuda") for ranges in (None, *["moving_average"] * 3)
    )
    frozen.quantizers.observing = False
    fits = (plain, follows, frozen, written_out)
    steps: dict[str, Callable[[], None]] = {
        "plain": plain,
        "through int8": follows,
        "through int8, ranges frozen": frozen,
        "through int8, tensor operations": partial(_without_kernels, written_out),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(WARM_UP + rounds):
        for name in steps if k % 2 else reversed(steps):
            torch.cuda.synchronize()
            start = time.perf_counter()
            steps[name]()
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    print(f"\n{job.title}, batch {len(job.labels)}, {precision}\n\n| step | median | against plain | memory |\n"
          "|---|---:|---:|---:|")  # fmt: skip
    base = statistics.median(times["plain"][WARM_UP:])
    for fit, (name, mine) in zip(fits, times.items(), strict=True):
        median = statistics.median(mine[WARM_UP:])
        fit.optimizer.zero_grad()
        memory = f"{_memory(steps[name]) / 1e6:.0f} MB"
        print(f"| {name} | {1e3 * median:.2f} ms | {median / base:.2f} | {memory} |", flush=True)


def _memory(step: Callable[[], None]) -> int:
    """Return the most that a step takes besides what is there before it, in bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _without_kernels(run: Callable[[], object]) -> None:
    with _tensor_operations():
        run()


@contextmanager
def _tensor_operations() -> Iterator[None]:
    """Do with tensor operations what else fused kernels do."""
    patches = [
        mock.patch.object(module, "kernels_for", return_value=None) for module in (fake_quant, observe, parameters)
    ]
    with patches[0], patches[1], patches[2]:
        yield


def _activation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (3 * torch.randn(shape, device="cuda")).to(dtype).to(memory_format=torch.channels_last)
    exact = _in_float(x, torch.tensor(1 / SCALE, device="cuda"), torch.tensor(SCALE, device="cuda"))
    numbers = torch.tensor([1 / SCALE, SCALE], device="cuda").unbind()
    seen = torch.full((2,), -torch.inf, device="cuda")
    kernel = partial(fused.round_activation, x, SCALE, ZERO_POINT, inplace=False)
    ways: dict[str, Callable[[], Tensor]] = {
        "tensor operations": partial(_written_out, x),
        "torch.fake_quantize_per_tensor_affine": partial(
            torch.fake_quantize_per_tensor_affine, x, SCALE, ZERO_POINT, 0, 255
        ),
        "torch.compile": partial(_compiled(), x, *numbers),
        "lighten": kernel,
        "tensor operations, observed": partial(_observed, x),
        "lighten, observed": partial(kernel, seen=seen),
    }
    print(f"\nan activation of {x.numel():,} numbers, {str(dtype).removeprefix('torch.')}\n\n"
          "| way | on the GPU | to launch | not as in float32 |\n|---|---:|---:|---:|")  # fmt: skip
    for name, way in ways.items():
        wrong = int((way() != exact).sum())
        took = do_bench(way, return_mode="median", warmup=10, rep=50)
        print(f"| {name} | {1e3 * took:.1f} us | {1e6 * _launch(way):.1f} us | {wrong / x.numel():.2%} |", flush=True)


def _written_out(x: Tensor) -> Tensor:
    return (x * (1.0 / SCALE)).round_().clamp_(-ZERO_POINT, 255 - ZERO_POINT).mul_(SCALE)


def _observed(x: Tensor) -> Tensor:
    x.amin().float(), x.amax().float()
    return _written_out(x)


def _in_float(x: Tensor, inverse: Tensor, scale: Tensor) -> Tensor:
    return ((x.float() * inverse).round().clamp(-ZERO_POINT, 255 - ZERO_POINT) * scale).to(x.dtype)


def _compiled() -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(_in_float)


def _weight(width: int) -> None:
    layer, norm = nn.Conv2d(width, width, 3).cuda(), nn.BatchNorm2d(width).cuda().eval()
    parts = [layer.weight, layer.bias, norm.weight]

    def both_ways() -> None:
        weight, bias = parameters.effective_parameters(layer.weight, layer.bias, norm, 0.02)
        torch.autograd.grad([weight, bias], parts, [weight, bias])

    print(f"\na weight of {width} x {width} x 3 x 3 and its norm, forward and backward, to launch: "
          f"{1e6 * _launch(partial(_without_kernels, both_ways)):.0f} us by tensor operations, "
          f"{1e6 * _launch(both_ways):.0f} us by kernels", flush=True)  # fmt: skip


def _launch(way: Callable[[], object]) -> float:
    """Return the seconds that the processor takes for one call."""
    times = []
    for _ in range(35):
        torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times[5:])


if __name__ == "__main__":
    main()

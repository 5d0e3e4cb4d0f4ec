"""What a training step through int8 costs on a GPU: ``python benchmarks/quantization_cuda.py [--precision bf16-mixed]``.

One process, all steps in turn, each waited for; medians. A step is forward, backward, optimizer, ranges. Plain, through
int8 while ranges follow the data and once they are frozen; the latter two also with fake-quantization written out in
tensor operations instead of fused kernels. Then one activation and one layer's weight alone, in several ways:
tensor operations, PyTorch's own fused operator, ``torch.compile``, the kernels of ``lighten``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from quantization import Job, _encoder_job, _resnet_job
from torch import Tensor, nn

from lighten import quantize_
from lighten.example import logits_of, map_tensors
from lighten.quantization import fake_quant, fused, parameters, sites
from lighten.quantization.insert import bank_of
from lighten.quantization.sites import Stage

WARM_UP = 10
CASES: dict[str, tuple[Callable[[int], Job], int]] = {}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["bf16-mixed", "32-true"])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    torch.manual_seed(0)
    for job in (_resnet_job(128), _wide_job(1024), _base_job(64), _encoder_job(16)):
        for precision in arguments.precision:
            _steps(job, precision, arguments.steps)
    _alone()


def _steps(job: Job, precision: str, rounds: int) -> None:
    steps = {
        "plain": Step(job, precision),
        "through int8": Step(job, precision, quantized=True),
        "through int8, ranges frozen": Step(job, precision, quantized=True, follows=False),
        "through int8, tensor operations": Step(job, precision, quantized=True, fused=False),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(WARM_UP + rounds):
        for name in steps if k % 2 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    print(f"\n{job.title}, batch {len(job.labels)}, {precision}\n\n| step | median | against plain | memory |\n"
          "|---|---:|---:|---:|")  # fmt: skip
    base = statistics.median(times["plain"][WARM_UP:])
    for name, mine in times.items():
        median = statistics.median(mine[WARM_UP:])
        print(f"| {name} | {1e3 * median:.2f} ms | {median / base:.2f} | {steps[name].memory() / 1e6:.0f} MB |", flush=True)


class Step:
    """A training step of a job on the GPU."""

    def __init__(
        self, job: Job, precision: str, *, quantized: bool = False, follows: bool = True, fused: bool = True
    ) -> None:
        self.model = job.build().train().cuda()
        if any(p.dim() == 4 for p in self.model.parameters()):
            self.model = self.model.to(memory_format=torch.channels_last)
        self.args, self.kwargs = map_tensors(lambda t: t.cuda(), job.call)
        self.labels, self.bank, self.follows, self.fused = job.labels.cuda(), None, follows, fused
        self.cast = partial(torch.autocast, "cuda", torch.bfloat16, enabled=precision == "bf16-mixed")
        with torch.no_grad():
            for _ in range(10):  # settles the running statistics
                self.model(*self.args, **self.kwargs)
        if quantized:
            quantize_(self.model, example_input=self.kwargs or self.args)
            self.bank = bank_of(self.model)
            self.bank.stage, self.bank.observing = Stage.OBSERVE, True
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        self.step()
        if self.bank is not None:
            self.bank.update()
            self.bank.stage, self.bank.observing = Stage.ON, follows

    def __call__(self) -> None:
        with without_kernels(self.fused):
            self.step()
        if self.bank is not None and self.follows:
            self.bank.update()

    def step(self) -> None:
        """Forward, backward, optimizer."""
        with self.cast():
            loss = F.cross_entropy(logits_of(self.model(*self.args, **self.kwargs)), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def memory(self) -> int:
        """Return the most that a step takes besides what is there before it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


@contextmanager
def without_kernels(fused: bool) -> Iterator[None]:
    """Do with tensor operations what else kernels do, unless ``fused``."""
    if fused:
        yield
        return
    nothing = {"kernels_for": lambda x: None}
    with mock.patch.multiple(fake_quant, **nothing), mock.patch.multiple(parameters, **nothing):
        with mock.patch.multiple(sites, **nothing):
            yield


def _alone() -> None:
    from triton.testing import do_bench

    def written_out(x: Tensor, scale: float, zero_point: int) -> Tensor:
        return (x * (1.0 / scale)).round_().clamp_(-zero_point, 255 - zero_point).mul_(scale)

    def in_float(x: Tensor, inverse: Tensor, scale: Tensor) -> Tensor:
        return ((x.float() * inverse).round().clamp(-100, 155) * scale).to(x.dtype)

    compiled = torch.compile(in_float, dynamic=True)
    scale, zero_point = 0.05, 100
    tensors = torch.tensor(1 / scale, device="cuda"), torch.tensor(scale, device="cuda")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((128, 16, 28, 28), (1024, 64, 28, 28)):
            x = (3 * torch.randn(shape, device="cuda")).to(dtype).to(memory_format=torch.channels_last)
            seen = torch.full((2,), -torch.inf, device="cuda")
            exact = ((x.float() * (1 / scale)).round().clamp(-100, 155) * scale).to(dtype)
            ways = {
                "tensor operations": lambda: written_out(x, scale, zero_point),
                "torch.fake_quantize_per_tensor_affine": lambda: torch.fake_quantize_per_tensor_affine(
                    x, scale, zero_point, 0, 255
                ),
                "torch.compile": lambda: compiled(x, *tensors),
                "lighten": lambda: fused.round_activation(x, scale, zero_point, inplace=False),
                "tensor operations, observed": lambda: (x.amin().float(), x.amax().float(), written_out(x, scale, 100)),
                "lighten, observed": lambda: fused.round_activation(x, scale, zero_point, inplace=False, seen=seen),
            }
            for name, way in ways.items():
                try:
                    result = way()
                    result = result[-1] if isinstance(result, tuple) else result
                    wrong = int((result != exact).sum())
                    device = do_bench(way, return_mode="median", warmup=10, rep=50)
                    print(f"{tuple(shape)} {str(dtype)[6:]}: {name}: {1e3 * device:.1f} us on the device, "
                          f"{1e6 * _launch(way):.1f} us to launch, {wrong} of {x.numel()} not as in float32", flush=True)  # fmt: skip
                except Exception as error:  # a way that does not work here is named
                    print(f"{name}: {type(error).__name__}: {error!s:.150}", flush=True)
    for width in (16, 64, 512):
        layer, norm = nn.Conv2d(width, width, 3).cuda(), nn.BatchNorm2d(width).cuda().eval()
        for fuse in (False, True):

            def way() -> Tensor:
                with without_kernels(fuse):
                    weight, bias = parameters.effective_parameters(layer.weight, layer.bias, norm, 0.02)
                    torch.autograd.backward([weight, bias], [weight, bias])

            print(f"weight of {width} x {width} x 3 x 3 with norm, forward and backward, "
                  f"{'kernels' if fuse else 'tensor operations'}: {1e6 * _launch(way):.0f} us to launch", flush=True)  # fmt: skip


def _launch(way: Callable[[], object]) -> float:
    """Return the seconds that the processor takes for one call."""
    for _ in range(5):
        way()
    times = []
    for _ in range(30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times)


def _wide_job(batch: int) -> Job:
    from lighten import build_model

    images = torch.randn(batch, 1, 28, 28).to(memory_format=torch.channels_last)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=64, stem_stride=1)

    return Job("ResNet-20 width 64 at 28x28", build, ((images,), {}), torch.randint(0, 10, (batch,)))


def _base_job(batch: int) -> Job:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    settings = DistilBertConfig(num_labels=10)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return DistilBertForSequenceClassification(settings)

    texts = {"input_ids": torch.randint(5, 30000, (batch, 128)), "attention_mask": torch.ones(batch, 128).long()}
    return Job("DistilBERT's shape (6 layers, width 768, length 128)", build, ((), texts), torch.randint(0, 10, (batch,)))


if __name__ == "__main__":
    main()

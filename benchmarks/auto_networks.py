"""Networks that ``benchmarks/auto.py`` compresses, each trained once a seed and kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lighten import DistillationModule, build_data, build_model
from lighten.tasks import task_of
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings

IMAGE, CLASSES = (1, 28, 28), 10


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution, with an expansion before where there is one, as in MobileNet V2."""

    def __init__(self, width: int, out: int, *, stride: int = 1, expansion: int = 4) -> None:
        inner = width * expansion
        super().__init__(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.adds = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, with its input where shapes allow."""
        y = super().forward(x)
        return x + y if self.adds else y


def mobile() -> nn.Module:
    """Return a network of MobileNet V2's shape for images of 28×28."""
    blocks = [(16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (64, 1)]
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for out, stride in blocks:
        layers.append(Separable(width, out, stride=stride))
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


@dataclass(frozen=True)
class Case:
    """A network with its data and how it is trained.

    Attributes:
        data: name and options of the data.
        network: builds it for a data module.
        epochs: that it is trained for.
        optimizer: of that.
        smaller: times that the file has to be smaller.
        faster: times that it has to be faster; 0 where nothing is asked.
    """

    data: tuple[str, dict[str, Any]]
    network: Callable[[Any], nn.Module]
    epochs: int
    optimizer: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    smaller: float = 6.0
    faster: float = 3.0

    def datamodule(self, seed: int) -> Any:
        """Return the data, set up."""
        name, options = self.data
        data = build_data(name, batch_size=self.batch_size, seed=seed, **options)
        data.prepare_data()
        data.setup("fit")
        return data


def _named(name: str, **options: Any) -> Callable[[Any], nn.Module]:
    def build(data: Any) -> nn.Module:
        return build_model(name, num_classes=data.num_classes, input_shape=data.input_shape, **options)

    return build


SGD = {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4}
ADAMW = {"name": "adamw", "lr": 0.002, "weight_decay": 0.01}
NETWORKS = {
    "resnet20": Case(("fashion_mnist", {}), _named("resnet20", width=16), 15, SGD),
    "mobile": Case(("fashion_mnist", {}), lambda data: mobile(), 15, SGD),
    "table_mlp": Case(
        ("diamonds", {}), _named("table_mlp", hidden=[512, 512, 256]), 14, ADAMW, batch_size=256, faster=0.0
    ),
    "minilm": Case(
        ("wordnet_glosses", {"max_length": 32, "tokenizer": "minilm"}), _named("transformers", path="minilm"), 3,
        {"name": "adamw", "lr": 2e-4, "weight_decay": 0.01, "warmup": 0.1, "schedule": "linear"}, batch_size=64,
        smaller=3.5,
    ),
    "smoke": Case(
        ("fashion_mnist", {}), _named("resnet20", width=8, blocks=1, stem_stride=2), 2, SGD, smaller=0.0, faster=0.0
    ),
}  # fmt: skip
"""By name; ``smoke`` shows that the benchmark runs, and nothing else."""


def trained(name: str, seed: int, home: Path, **trainer: Any) -> tuple[nn.Module, Any]:
    """Return a network in eval mode, trained on the labels alone, and its data; the next call finds it in ``home``."""
    case = NETWORKS[name]
    data = case.datamodule(seed)
    torch.manual_seed(seed)
    model = case.network(data)
    path = home / f"{name}-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval(), data
    optimizer = OptimizerSettings(**case.optimizer)
    module = DistillationModule(
        model, None, soft_weight=0.0, task=task_of(data.task), optimizer=optimizer, num_classes=data.num_classes
    )
    settings = {"max_epochs": case.epochs, "enable_progress_bar": False, "gradient_clip_val": 1.0, **trainer}
    work = home / f"{name}-{seed}"
    make_trainer(folder=work, stage=name, settings=settings, monitor=None, seed=seed).fit(module, data)
    torch.save(model.state_dict(), path)
    return model.eval(), data

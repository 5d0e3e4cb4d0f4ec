"""Quality by a metric that a LightningModule of somebody's own logs: its validation step runs the file itself."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader

from lighten.delivery.measure.latency import batch_of, interleaved_latency
from lighten.delivery.measure.measure import batches_of, model_scores
from lighten.delivery.measure.scores import SCHEMA, write_scores
from lighten.delivery.runtimes.runners import Runner, open_runner
from lighten.delivery.runtimes.signature import named_outputs
from lighten.errors import UserError
from lighten.search.confirm import Confirmation, confirm_logged
from lighten.search.needs import Needs
from lighten.search.quality import figures_of, latency_sizes, reckoned
from lighten.search.splits import Part, Splits
from lighten.search.subject import GuidedData, Subject, as_many
from lighten.utils.clone import clone
from lighten.utils.inputs import leaves_of

CHUNKS = 50
"""Parts of a split whose metrics are compared in pairs, at most."""
SCRAMBLES = 3
"""Networks with their weights in disorder, to see what one that knows nothing would come to."""


@dataclass(frozen=True)
class ByName:
    """By a metric that ``validation_step`` logs, the mean over samples of something.

    The step runs as it is, and the file answers in the network's place. The drop is in points where more is better and
    the original's is at most 1, else the share of its quality that goes, as ratios say it.

    Args:
        subject: with an owner.
        data: what it does to batches is done.
        splits: of the data.
        metric: the name that is logged.
        lower_is_better: its direction.
    """

    subject: Subject
    data: L.LightningDataModule
    splits: Splits
    metric: str
    lower_is_better: bool

    def drop(self, reference: float, value: float) -> float:
        """Return what is lost between two values of the metric."""
        if self.lower_is_better:
            return 1 - reference / value if value > 0 else 0.0
        return reference - value if 0 <= reference <= 1 else 1 - value / reference

    def original(self, file: Path, splits: Splits, needs: Needs) -> dict[str, Any]:
        """Return the original's metric on both parts, and its figures."""
        with open_runner(file, threads=needs.threads) as runner:
            values = self._values(_Answering(runner, self.subject), [splits.select, splits.guide])
            scores = self._figures({"original": runner}, needs, [needs.batch])["original"]
        return {"metric": values[0], "guide": values[1], **figures_of(scores, needs)}

    def measure(
        self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs, *, confirming: int
    ) -> dict[str, Any]:
        """Measure a file in turn with the original's, and write ``scores.json``."""
        found, figures = self._pair(folder, original, file, loader, needs)
        return {**reckoned(found, confirming), **figures}

    def confirm(self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs) -> Confirmation:
        """Return the drop on samples that nothing was chosen on, with its bound."""
        return self._pair(folder, original, file, loader, needs)[0]

    def check_trained(self, subject: Subject, splits: Splits) -> None:
        """Compare the network with copies whose weights are in disorder.

        Raises:
            UserError: if it is no better, or the metric is not logged.
        """
        (own,) = self._values(None, [splits.guide])
        draws = torch.Generator().manual_seed(0)
        others = [self._values(_scrambled(subject.network, draws), [splits.guide])[0] for _ in range(SCRAMBLES)]
        best = min(others) if self.lower_is_better else max(others)
        if not (own < best if self.lower_is_better else own > best):
            raise UserError(
                f"the model is not trained: its {self.metric} is {own:.4g}, and {best:.4g} with its weights in "
                "disorder; train it first"
            )

    def _pair(
        self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs
    ) -> tuple[Confirmation, dict[str, Any]]:
        with ExitStack() as stack:
            files = {"original": original, "compressed": file}
            runners = {n: stack.enter_context(open_runner(path, threads=needs.threads)) for n, path in files.items()}
            parts = _chunks(loader)
            sizes = [len(part) for part, _ in parts]
            loaders = [part for _, part in parts]
            values = {name: self._values(_Answering(runner, self.subject), loaders) for name, runner in runners.items()}
            scores = self._figures(runners, needs, latency_sizes(needs))
        confirmation = confirm_logged(
            self.drop, sizes, values["original"], values["compressed"], max_drop=needs.max_drop
        )
        means = {
            name: sum(v * n for v, n in zip(each, sizes, strict=True)) / sum(sizes) for name, each in values.items()
        }
        for name, each in scores.items():
            each[self.metric] = means[name]
        self._write(folder, scores)
        timed = {"original_ms": scores["original"]["latency_ms"][f"batch_{needs.batch}"]["median"]}
        figures = {"metric": means["compressed"], **figures_of(scores["compressed"], needs), **timed}
        return confirmation, figures

    def _figures(self, runners: dict[str, Runner], needs: Needs, sizes: list[int]) -> dict[str, dict[str, Any]]:
        call = self.subject.calls[0]
        latency = interleaved_latency(runners, batches_of(call, sizes), seconds=1.0)
        return {n: model_scores(r, r.count(batch_of(call, 1)), {}, latency[n]) for n, r in runners.items()}

    def _write(self, folder: Path, scores: dict[str, dict[str, Any]]) -> None:
        meaning = {"label": self.metric, "format": "number", "lower_is_better": self.lower_is_better}
        one, other = scores["original"], scores["compressed"]
        task = {
            "name": "own", "settings": None, "metric": self.metric, "lower_is_better": self.lower_is_better, "unit": "",
            "exhibit": "", "metrics": {self.metric: meaning}, "alike": {},
        }  # fmt: skip
        ratios = {
            "retention": 1 - self.drop(one[self.metric], other[self.metric]),
            "size_ratio": one["bytes"] / other["bytes"],
            "mac_ratio": one["macs"] / max(1, other["macs"]),
            "parameter_ratio": one["parameters"] / max(1, other["parameters"]),
            **{f"speedup_{b}": one["latency_ms"][b]["median"] / t["median"] for b, t in other["latency_ms"].items()},
        }
        content: Any = {
            "schema": SCHEMA, "recipe": "compress", "task": task,
            "models": {"teacher": None, "student": one, "compressed": other},
            "comparison": {**ratios, "likeness": {}}, "parts": {}, "provenance": {},
        }  # fmt: skip
        write_scores(folder, content)

    def _values(self, network: nn.Module | None, loaders: Sequence[Any]) -> list[float]:
        """Return what the owner logs on each of ``loaders`` with ``network`` in its part's place.

        Raises:
            UserError: if it does not log the metric.
        """
        owner: Any = self.subject.copied_owner()
        if network is not None and self.subject.part:
            owner.set_submodule(self.subject.part, network)
        elif isinstance(network, _Answering):
            owner.forward = network.forward
        elif network is not None:
            owner = network
        options: dict[str, Any] = {
            "logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False,
            "accelerator": "cpu", "devices": 1,
        }  # fmt: skip
        found = []
        with silent():
            trainer = L.Trainer(**options)
            for loader in loaders:
                trainer.validate(owner, datamodule=GuidedData(self.data, self.splits, validation=loader), verbose=False)
                if self.metric not in trainer.callback_metrics:
                    logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
                    raise UserError(
                        f"metric={self.metric!r}: validation_step of {type(owner).__name__} does not log it, it logs "
                        f"{logged}"
                    )
                found.append(float(trainer.callback_metrics[self.metric]))
                if isinstance(network, _Answering) and math.isnan(found[-1]):
                    raise UserError(
                        f"metric={self.metric!r}: is not a number where a file answers; a file has no loss that the "
                        "network computes from labels: log a metric that is computed from its answers"
                    )
        return found


class _Answering(nn.Module):
    """A file in a network's place: it answers in the same dicts and dataclasses; what only labels give is NaN."""

    def __init__(self, runner: Runner, subject: Subject) -> None:
        super().__init__()
        self._held = runner, subject.network  # a tuple, so that nobody copies it as a part
        self._example = subject.calls[0]
        self._outputs = list(named_outputs(self._of_network(*self._example)))
        self._form: tuple[list[Any], Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file."""
        runner, _ = self._held
        arrays = runner.run_all(runner.feed(as_many((args, kwargs), self._example)))
        found = {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in zip(self._outputs, arrays, strict=True)}
        if self._form is None:
            answer = self._of_network(args, kwargs)
            names = {id(tensor): name for name, tensor in named_outputs(answer).items()}
            leaves_of(answer)
            leaves, spec = tree_flatten(answer)
            self._form = [_Named(names[id(x)]) if id(x) in names else x for x in leaves], spec
        leaves, spec = self._form
        nan = torch.tensor(math.nan)
        return tree_unflatten([found.get(x.name, nan) if isinstance(x, _Named) else x for x in leaves], spec)

    @torch.no_grad()
    def _of_network(self, args: Any, kwargs: Any) -> Any:
        return self._held[1](*args, **kwargs)


@dataclass(frozen=True)
class _Named:
    """The place of a tensor of this name in an answer."""

    name: str


@contextmanager
def silent() -> Iterator[None]:
    """Keep Lightning from telling of each Trainer."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _scrambled(network: nn.Module, draws: torch.Generator) -> nn.Module:
    """Return a copy with the numbers of each weight in another order."""
    copied = clone(network)
    with torch.no_grad():
        for weight in copied.parameters():
            flat = weight.flatten()
            weight.copy_(flat[torch.randperm(len(flat), generator=draws)].view_as(weight))
    return copied


def _chunks(loader: DataLoader[Any]) -> list[tuple[Part, DataLoader[Any]]]:
    """Return the samples of a loader in parts of about one size, each with its own loader."""
    whole: Any = loader.dataset
    samples = range(len(whole))
    size = min(max(1, math.ceil(len(samples) / CHUNKS)), loader.batch_size or 1)
    parts = [Part(whole, samples[i : i + size]) for i in range(0, len(samples), size)]
    return [(part, DataLoader(part, batch_size=size, collate_fn=loader.collate_fn)) for part in parts]

"""What Lightning's users already have keeps working: their modules, their CLI, their callbacks, in real fits."""

import re
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from finished_run import make_scores
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    ThroughputMonitor,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import DistillationModule, Prune, Quantize, UserError, shrink
from lighten.delivery.report.publish import figures_of
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.training.finite import StopOnNonFinite
from lighten.training.optimizer import OptimizerSettings
from lighten.training.record import OWN_KEYS, History, read

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}


def net(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 3),
    )  # fmt: skip


class Digits(L.LightningDataModule):
    """Forty-eight images of three kinds that can be told apart."""

    def __init__(self, batch_size: int = 16):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        labels = torch.arange(48) % 3
        self.set = TensorDataset(torch.randn(48, 1, 8, 8, generator=draw) + labels.view(-1, 1, 1, 1), labels)
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(self.set, batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Own(L.LightningModule):
    """A user's module, that has never heard of lighten."""

    def __init__(self, width: int = 8, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = net(width)
        self.lr = lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return self._step(batch, "train")

    def validation_step(self, batch, index):
        self._step(batch, "val")

    def test_step(self, batch, index):
        self._step(batch, "test")

    def predict_step(self, batch, index):
        return self(batch[0]).argmax(1)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def _step(self, batch, stage):
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log_dict({f"{stage}_loss": loss, f"{stage}_accuracy": (logits.argmax(1) == batch[1]).float().mean()})
        return loss


def distilled(**settings):
    return DistillationModule(net(), net(16), optimizer=OptimizerSettings(lr=0.01), num_classes=3, **settings)


def both():
    return [Prune(0.5, begin=0.0, end=0.5, live=True), Quantize(begin=0.5)]


def trainer(tmp_path, *callbacks, **settings):
    given = {"max_epochs": 4, "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    return L.Trainer(**{**QUIET, **given, **settings}, callbacks=[*both(), *callbacks])


@pytest.mark.parametrize("make", [Own, distilled], ids=["own module", "distillation"])
def test_validate_test_and_predict_are_of_the_compressed_network(make, tmp_path):
    module, data = make(), Digits()
    fit = trainer(tmp_path)
    fit.fit(module, data)
    images, labels = data.set.tensors
    target = getattr(module, "student", module)
    small = shrink(target, fit.callbacks[0].plan).eval()
    assert next(p for p in small.parameters() if p.ndim == 4).shape[0] == 4
    with torch.no_grad():
        answers = small(images).argmax(1)
    right = pytest.approx((answers == labels).float().mean().item(), abs=1e-6)
    key = "student/accuracy" if hasattr(module, "student") else "test_accuracy"
    assert fit.test(module, data, verbose=False)[0][key] == right
    assert fit.validate(module, data, verbose=False)[0][key.replace("test", "val")] == right
    predicted = torch.cat(fit.predict(module, data))
    assert torch.equal(predicted if predicted.ndim == 1 else predicted.argmax(1), answers)


CONFIG = """
seed_everything: 1
model: {width: 8}
data: {batch_size: 12}
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lighten.Prune
      init_args: {amount: 0.5, begin: 0.0, end: 0.5, exclude: [net.5]}
    - class_path: lighten.Quantize
      init_args: {begin: 0.5}
"""


@pytest.fixture
def run_cli(monkeypatch):
    """Call LightningCLI as a script's command line would."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fit.py", *arguments])
        return LightningCLI(Own, Digits, save_config_callback=None)

    return run


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_lightning_cli_takes_the_callbacks_from_yaml_and_from_the_command_line(tmp_path, run_cli):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    cli = run_cli("fit", "--config", str(config), "--model.width", "12")
    prune, quantize = cli.trainer.callbacks[:2]
    assert (type(prune), type(quantize)) == (Prune, Quantize)
    assert prune.plan.widths["net.0"] == (12, 6)
    assert prune.exclude == ("net.5",)
    assert quantizers_of(cli.model).stage == Stage.ON
    assert quantize.begin == 0.5

    words = ["--trainer.callbacks+=lighten.Prune", "--trainer.callbacks.amount=0.25", "--trainer.callbacks.end=0.5"]
    quiet = [f"--trainer.{key}={str(value).lower()}" for key, value in QUIET.items()]
    quiet += ["--trainer.max_epochs=2", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    cli = run_cli("fit", "--seed_everything=1", *quiet, *words)
    assert cli.trainer.callbacks[0].plan.widths["net.0"] == (8, 6)


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_lightning_cli_refuses_a_setting_that_a_callback_has_not(tmp_path, capsys, run_cli):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("begin: 0.5", "beginn: 0.5"))
    with pytest.raises(SystemExit) as ended:
        run_cli("fit", "--config", str(config))
    assert ended.value.code == 2
    assert "beginn" in capsys.readouterr().err


class AtStart(L.Callback):
    """Keeps which plan is there before the first step."""

    plan = None

    def on_fit_start(self, trainer, pl_module):
        self.plan = trainer.callbacks[0].plan and trainer.callbacks[0].plan.hash


MONITORED = [(Own, "val_loss", "min"), (distilled, "student/accuracy", "max")]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(("make", "monitor", "mode"), MONITORED)
def test_the_best_checkpoint_is_kept_found_again_and_gone_on_with(make, monitor, mode, tmp_path):
    def keep_best():
        return ModelCheckpoint(tmp_path, monitor=monitor, mode=mode, save_last=True, filename="best")

    keep, data = keep_best(), Digits()
    L.seed_everything(0, verbose=False)  # a teacher of the same bits, when the fit goes on
    module, fit = make(), trainer(tmp_path, keep, enable_checkpointing=True)
    fit.fit(module, data)
    assert Path(keep.best_model_path) == tmp_path / "best.ckpt"
    best = fit.validate(module, data, ckpt_path="best", verbose=False, weights_only=True)[0]
    assert best[monitor] == pytest.approx(keep.best_model_score.item())

    L.seed_everything(0, verbose=False)
    resumed = AtStart()
    again, longer = make(), trainer(tmp_path, keep_best(), resumed, enable_checkpointing=True, max_epochs=6)
    longer.fit(again, data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert longer.current_epoch == 6
    removed = fit.callbacks[0].plan.hash
    assert resumed.plan == removed, "the plan is the checkpoint's, not made anew from zeros"
    assert longer.callbacks[0].plan.hash == removed  # what is removed stays so
    assert longer.callback_metrics["quantize/enabled"] == 1.0


@pytest.mark.parametrize(("make", "monitor", "mode"), MONITORED)
def test_early_stopping_before_the_end_of_a_technique_fails_when_all_is_saved(make, monitor, mode, tmp_path):
    never = EarlyStopping(monitor, mode=mode, min_delta=1e3, patience=1)
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit = trainer(tmp_path, never, saved, max_epochs=8, enable_checkpointing=True)
    with pytest.raises(
        UserError, match=r"the fit stopped after 6 of 24 steps, before end=0.5 of Prune: .*EarlyStopping"
    ):
        fit.fit(make(), Digits())
    assert never.stopped_epoch == 1
    assert 0 < fit.callbacks[0].plan.sparsity < 0.5
    assert torch.load(saved.last_model_path, weights_only=True)["global_step"] == 6
    fit = trainer(tmp_path, EarlyStopping(monitor, mode=mode, min_delta=1e3, patience=1), max_epochs=8)
    fit.callbacks.remove(fit.callbacks[0])
    with pytest.raises(UserError, match=r"before begin=0.5 of Quantize: the model is still in floating point"):
        fit.fit(make(), Digits())

    late = EarlyStopping(monitor, mode=mode, min_delta=1e3, patience=5)
    fit = trainer(tmp_path, late, max_epochs=8)
    fit.fit(make(), Digits())  # after both have begun nothing is left to tell
    assert late.stopped_epoch == 5
    assert fit.callbacks[0].plan.sparsity == 0.5


def rows(folder):
    """Return the lines of Lightning's CSV logger, empty cells left out."""
    header, *lines = (Path(folder) / "metrics.csv").read_text().splitlines()
    return [{k: v for k, v in zip(header.split(","), line.split(","), strict=True) if v} for line in lines]


def test_learning_rate_monitor_shows_what_the_schedule_does(tmp_path):
    logger = CSVLogger(tmp_path)
    fit = trainer(tmp_path, LearningRateMonitor("step"), logger=logger)
    fit.fit(distilled(), Digits())
    monitored = [(row["lr-AdamW/pg1"], row["lr-AdamW/pg2"]) for row in rows(logger.log_dir) if "lr-AdamW/pg1" in row]
    ours = [float(row["lr"]) for row in rows(logger.log_dir) if "lr" in row]
    assert len(monitored) == len(ours) == 12
    assert [float(decayed) for decayed, _ in monitored] == pytest.approx(ours, rel=1e-6)
    assert ours[0] > ours[-1]
    assert all(decayed == plain for decayed, plain in monitored)


def test_rich_progress_bar_shows_the_loss_and_the_students_accuracy(tmp_path, capsys):
    fit = trainer(tmp_path, RichProgressBar(), enable_progress_bar=True, max_epochs=2)
    fit.fit(distilled(), Digits())
    assert fit.progress_bar_callback is fit.callbacks[2]
    shown = capsys.readouterr().out
    assert "Pruning plan: 50.0% of 8 channels" in " ".join(shown.split())
    assert {"train/loss", "student/accuracy"} <= set(fit.progress_bar_metrics)
    assert re.search(r"Epoch 1/1", shown)


def test_throughput_monitor_counts_samples(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), window_size=4)
    module, fit = distilled(), trainer(tmp_path, monitor, logger=logger)
    module.flops_per_batch = 1e6  # the monitor asks for it
    fit.fit(module, Digits())
    counted = [row for row in rows(logger.log_dir) if "train/samples" in row]
    assert [int(float(row["train/samples"])) for row in counted] == [16 * n for n in range(1, 13)]
    assert float(counted[-1]["train/device/samples_per_sec"]) > 0


LOGGING = Path(__file__).parents[1] / "docs" / "guide" / "logging.md"
SOURCE = Path(__file__).parents[1] / "src" / "lighten"
FAMILIES = "train|student|teacher|gap|distil|prune|quantize"


def documented(heading="Names"):
    """Return the names in the first column of the tables of a section; ``<…>`` stands for what a run decides."""
    section = LOGGING.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def pattern(name):
    return re.compile(re.sub(r"<\w+>", ".+", re.escape(name).replace(r"\<", "<").replace(r"\>", ">")))


LABELS = {
    "classification": lambda: torch.arange(24) % 3,
    "multilabel": lambda: (torch.randn(24, 3) > 0).float(),
    "regression": lambda: torch.randn(24, 3),
    "segmentation": lambda: torch.randint(0, 3, (24, 4, 4)),
    "image": lambda: torch.randn(24, 3, 4, 4),
}


def perceptron(task):
    layer = nn.Linear if task in ("classification", "multilabel", "regression") else partial(nn.Conv2d, kernel_size=1)
    return nn.Sequential(layer(4, 8), nn.ReLU(), layer(8, 3))


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Return every name that fits of all kinds log, as loggers and as ``callback_metrics`` see them."""
    names = set()
    for task, labels in LABELS.items():
        folder = tmp_path_factory.mktemp(task)
        losses = {"classification": {"soft_labels": 1, "dkd": 1, "dist": 1, "hint": 1, "cross_entropy": 1}}.get(task)
        layers = {"0": "0"} if losses else "uniform"
        module = DistillationModule(perceptron(task), perceptron(task), task=task, losses=losses, layers=layers)
        inputs = torch.randn(24, 4, *[4] * (2 * (labels().ndim > 2)))
        loader = DataLoader(TensorDataset(inputs, labels()), batch_size=8)
        fit = trainer(folder, History(folder / "history.jsonl"), StopOnNonFinite("skip"))
        fit.fit(module, loader, loader)
        names |= set(fit.callback_metrics).union(*read(folder / "history.jsonl"))
        names |= set(fit.test(module, loader, verbose=False)[0])
    return names - set(OWN_KEYS)


def test_every_name_that_is_logged_is_documented(logged):
    known = [pattern(name) for name in documented()]
    assert sorted(name for name in logged if not any(each.fullmatch(name) for each in known)) == []
    assert len(logged) > 30


def test_every_name_that_the_code_can_log_is_documented():
    """Whichever module it is in, and whether or not the fits above reach it."""
    logs = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")]
    logs = [text for text in logs if re.search(r"(self|pl_module)\.log(_dict)?\(|[^.]log_now\(trainer", text)]
    written = {name for text in logs for name in re.findall(rf'"((?:{FAMILIES})/[^"{{]*)', text)}
    assert len(logs) >= 4
    assert len(written) >= 10
    assert sorted(name for name in written if not any(each.startswith(name) for each in documented())) == []


def test_every_documented_name_is_logged(logged):
    assert [name for name in documented() if not any(pattern(name).fullmatch(each) for each in logged)] == []
    assert len(documented()) > 20


def test_the_final_figures_are_those_documented():
    known, figures = documented("After the fit"), figures_of(make_scores())
    assert [name for name in figures if not any(pattern(each).fullmatch(name) for each in known)] == []
    assert [each for each in known if not any(pattern(each).fullmatch(name) for name in figures)] == []
    assert len(known) > 12

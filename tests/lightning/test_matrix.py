"""Every technique beside every feature of Lightning: the exported file is the network that was validated."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from cells import File, Images, Seen, Techniques, by_hand, is_quantized, plan_of, prove, trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

from lighten import Plan, UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback with a model that overrides the configure_model callback",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided",
)

TECHNIQUES = {
    "prune": Techniques(prunes=True),
    "quantize": Techniques(quantizes=True),
    "both": Techniques(prunes=True, quantizes=True),
    "distilled": Techniques(prunes=True, quantizes=True, taught=True),
}


@dataclass
class Fitted:
    """A fit that is over, and what is to be proven of it."""

    techniques: Techniques
    trainer: Any
    module: Any
    data: Images
    folder: Any
    plan: Plan | None = None
    logged: tuple[Any, Any] | None = None
    near: float = 0.0
    tests: bool = False

    def prove(self):
        prove(
            self.trainer, self.module, self.plan, self.data, self.folder, logged=self.logged, near=self.near,
            tests=self.tests,
        )  # fmt: skip


@dataclass
class Feature:
    """How a fit with a feature is made, and what is done after it."""

    callbacks: Callable[[str], list] = lambda metric: []
    settings: dict = field(default_factory=dict)
    alter: Callable = lambda kind: kind
    data: dict = field(default_factory=dict)
    after: Callable[[Fitted], None] = lambda fitted: None
    finishes: bool = True


def validated_later(fitted):
    """The averaged weights are put in after the last validation of the fit."""
    fitted.logged = None


def in_full_precision(fitted):
    """Validation of the fit was in bfloat16, of 8 bits."""
    fitted.near = 0.05
    fitted.trainer = trainer(fitted.folder, *fitted.trainer.callbacks)


def reloaded(fitted):
    """A fresh module takes the best checkpoint, with fresh callbacks."""
    best = fitted.trainer.checkpoint_callback
    saved = torch.load(best.best_model_path, weights_only=False)["callbacks"]
    plans = [state["plan"] for key, state in saved.items() if key.startswith("Prune")]
    fitted.plan = Plan.from_json(plans[0]) if plans else None
    fitted.module = fitted.techniques.module()
    fitted.trainer = trainer(fitted.folder, *fitted.techniques.callbacks())
    score = fitted.trainer.validate(fitted.module, fitted.data, ckpt_path=best.best_model_path, verbose=False)[0]
    assert score[fitted.module.metric] == pytest.approx(float(best.best_model_score), abs=1e-6)
    fitted.logged, fitted.tests = (best.best_model_score, fitted.logged[1]), True


def again(fitted):
    """The same callbacks fit the module once more."""
    refit(fitted, fitted.trainer.callbacks)


def again_with_others(fitted):
    """Fresh callbacks fit the module once more."""
    refit(fitted, [*fitted.techniques.callbacks(), Seen()])


def refit(fitted, callbacks):
    """Fit once more; what is pruned and computes through int8 is pruned on top of that."""
    fit(fitted, trainer(fitted.folder, *callbacks))


def copied(fitted):
    fitted.module, fitted.trainer = copy.deepcopy(fitted.module), trainer(fitted.folder)


def pickled(fitted):
    file = io.BytesIO()
    torch.save(fitted.module, file)
    file.seek(0)
    fitted.module, fitted.trainer = torch.load(file, weights_only=False), trainer(fitted.folder)


def loaded(fitted):
    """Weights alone are the whole network where nothing was quantized; else one line says what is missing."""
    path = fitted.folder / "last.ckpt"
    fitted.trainer.save_checkpoint(path)
    kind, parts = fitted.techniques.kind, fitted.techniques.parts()
    if fitted.techniques.quantizes:
        for strict in (True, False):
            with pytest.raises(UserError, match=r"^the state dict is of a network that was trained through int8.*$"):
                kind.load_from_checkpoint(path, map_location="cpu", weights_only=False, strict=strict, **parts)
        return
    fitted.module = kind.load_from_checkpoint(path, map_location="cpu", weights_only=False, **parts)
    fitted.trainer = trainer(fitted.folder)


FEATURES = {
    "nothing else": Feature(),
    "EMAWeightAveraging": Feature(lambda metric: [EMAWeightAveraging(decay=0.8)]),
    "StochasticWeightAveraging": Feature(lambda metric: [StochasticWeightAveraging(1e-3, 2)], after=validated_later),
    "GradientAccumulationScheduler": Feature(lambda metric: [GradientAccumulationScheduler({0: 1, 2: 2})]),
    "two optimizers": Feature(alter=lambda kind: by_hand(kind, optimizers=2)),
    "manual optimization": Feature(alter=by_hand),
    "EarlyStopping": Feature(
        lambda metric: [EarlyStopping(metric, min_delta=1e3, patience=4)], settings={"max_epochs": 6}
    ),
    "EarlyStopping too early": Feature(
        lambda metric: [EarlyStopping(metric, min_delta=1e3, patience=1)], settings={"max_epochs": 6}, finishes=False
    ),
    "best reloaded": Feature(
        lambda metric: [ModelCheckpoint(monitor=metric, save_top_k=1)], {"enable_checkpointing": True}, after=reloaded
    ),
    "BatchSizeFinder": Feature(lambda metric: [BatchSizeFinder(steps_per_trial=1, init_val=8, max_trials=2)]),
    "LearningRateFinder": Feature(lambda metric: [LearningRateFinder(num_training_steps=12)]),
    "fast_dev_run": Feature(settings={"fast_dev_run": 2}),
    "overfit_batches": Feature(settings={"overfit_batches": 2}),
    "reload_dataloaders": Feature(settings={"reload_dataloaders_every_n_epochs": 1}),
    "IterableDataset": Feature(settings={"max_epochs": -1, "max_steps": 16}, data={"streams": True}),
    "bf16": Feature(settings={"precision": "bf16-mixed"}, after=in_full_precision),
    "second fit, same callbacks": Feature(after=again),
    "second fit, fresh callbacks": Feature(after=again_with_others),
    "deepcopy": Feature(after=copied),
    "torch.save": Feature(after=pickled),
    "load_from_checkpoint": Feature(after=loaded),
}


def fit(fitted, new):
    """Fit, and note the last validation."""
    new.fit(fitted.module, fitted.data)
    seen = next(c for c in new.callbacks if isinstance(c, Seen))
    fitted.trainer, fitted.plan = new, plan_of(new)
    fitted.logged = (new.callback_metrics[fitted.module.metric], seen.samples)


@pytest.mark.parametrize(
    "techniques",
    [
        pytest.param(techniques, id=name, marks=[] if name == "distilled" else pytest.mark.slow)
        for name, techniques in TECHNIQUES.items()
    ],
)
@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_the_file_is_the_validated_network(techniques, feature, tmp_path):
    torch.manual_seed(0)
    module = techniques.module(feature.alter)
    callbacks = [*techniques.callbacks(), *feature.callbacks(module.metric), Seen()]
    fitted = Fitted(techniques, None, module, Images(**feature.data), tmp_path)
    made = trainer(tmp_path, *callbacks, **feature.settings)
    if not feature.finishes:
        with pytest.raises(UserError, match=r"^the fit stopped after .*$"):
            fit(fitted, made)
        fitted.trainer, fitted.plan = made, plan_of(made)
        if techniques.quantizes:
            with pytest.raises(UserError, match=r"^the model's fake-quantizers are off; .*$"):
                File(module, fitted.plan, tmp_path)
            return
        fitted.prove()
        return
    fit(fitted, made)
    assert is_quantized(module) == techniques.quantizes
    assert fitted.plan is None or fitted.plan.settings["strength"] == 1.0
    feature.after(fitted)
    assert is_quantized(fitted.module) == techniques.quantizes
    fitted.prove()

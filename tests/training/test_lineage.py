"""What a checkpoint says of where it comes from, and who may go on with it."""

import hashlib
import json

import pytest
import torch

from lighten.errors import UserError
from lighten.training.checkpoint import latest_good
from lighten.training.lineage import Lineage, differing, format_settings

SETTINGS = {"optimizer.lr": 0.05, "trainer.max_epochs": 2, "trainer.devices": 1, "batch_size": 4}
MADE_OF = {"data": "d" * 64, "teacher": None}


def fit(trainer, plain, batches, lineage, **settings):
    fitted = trainer(callbacks=[lineage], **settings)
    module = plain()
    path = latest_good(fitted.default_root_dir + "/checkpoints")
    fitted.fit(module, batches, batches, ckpt_path=path)
    return fitted, module


@pytest.fixture
def begun(trainer, plain, batches):
    fit(trainer, plain, batches, Lineage(SETTINGS, MADE_OF))


def kept(tmp_path):
    return torch.load(latest_good(tmp_path / "checkpoints"), weights_only=True)["lighten"]


def test_a_checkpoint_says_what_it_comes_from(tmp_path, begun) -> None:
    text = json.dumps(SETTINGS, sort_keys=True, separators=(",", ":"))
    assert kept(tmp_path) == {
        "schema": 1,
        "recipe": hashlib.sha256(text.encode()).hexdigest(),
        "settings": SETTINGS,
        "changes": [],
        "data": "d" * 64,
        "teacher": None,
    }


def test_the_same_settings_go_on(begun, trainer, plain, batches) -> None:
    fitted, _ = fit(trainer, plain, batches, Lineage(SETTINGS, MADE_OF), max_epochs=3)
    assert fitted.global_step == 9


def test_other_settings_are_told_and_stop(begun, trainer, plain, batches) -> None:
    other = {**SETTINGS, "optimizer.lr": 0.2, "batch_size": 8}
    with pytest.raises(UserError) as caught:
        fit(trainer, plain, batches, Lineage(other, MADE_OF), max_epochs=3)
    assert str(caught.value) == (
        "the checkpoint was made with optimizer.lr=0.05, batch_size=4, this fit has optimizer.lr=0.2, batch_size=8; "
        "repeat its settings, begin another run, or set resume=changed"
    )


@pytest.mark.parametrize(("name", "was"), [("data", "dddddddddddd"), ("teacher", "none")])
def test_other_data_and_another_teacher_stop_in_any_case(begun, trainer, plain, batches, name, was) -> None:
    lineage = Lineage(SETTINGS, {**MADE_OF, name: "f" * 64}, accept=lambda: None)
    with pytest.raises(UserError, match=f"the checkpoint's {name} is {was}, this fit's is ffffffffffff; give"):
        fit(trainer, plain, batches, lineage, max_epochs=3)


def other_optimizer(plain):
    class Other(plain):
        def configure_optimizers(self):
            made = super().configure_optimizers()
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.2, weight_decay=0.3)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return {**made, "optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Other


def test_told_to_go_on_the_new_optimizer_settings_hold(tmp_path, begun, trainer, plain, batches) -> None:
    rates, accepted = [], []
    lineage = Lineage(
        {**SETTINGS, "optimizer.lr": 0.2, "trainer.max_epochs": 3}, MADE_OF, accept=lambda: accepted.append(1)
    )

    class Read(other_optimizer(plain)):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    fitted, _ = fit(trainer, Read, batches, lineage, max_epochs=3)
    assert fitted.optimizers[0].param_groups[0]["weight_decay"] == 0.3
    assert rates == pytest.approx([0.2 * 0.5**step for step in (6, 7, 8)])
    assert accepted == [1]
    was = {"optimizer.lr": 0.05, "trainer.max_epochs": 2}
    assert kept(tmp_path)["changes"] == [{"step": 6, "was": was}]
    again = Lineage({**SETTINGS, "trainer.max_epochs": 4}, MADE_OF, accept=lambda: None)
    fit(trainer, plain, batches, again, max_epochs=4)
    assert [change["step"] for change in kept(tmp_path)["changes"]] == [6, 9]


def test_without_a_change_the_optimizer_goes_on_as_it_was(begun, trainer, plain, batches) -> None:
    lineage = Lineage(SETTINGS, MADE_OF, accept=lambda: None)
    fitted, _ = fit(trainer, other_optimizer(plain), batches, lineage, max_epochs=3)
    assert fitted.optimizers[0].param_groups[0]["weight_decay"] == 0.01
    assert fitted.lr_scheduler_configs[0].scheduler.base_lrs == [0.05]


def test_a_checkpoint_that_says_nothing_passes(tmp_path, trainer, plain, batches) -> None:
    trainer().fit(plain(), batches, batches)
    fitted, _ = fit(trainer, plain, batches, Lineage(SETTINGS, MADE_OF), max_epochs=3)
    assert fitted.global_step == 9


def test_what_differs_is_told_shortly() -> None:
    here, there = {"a": 1, "b": [2], "c": 3}, {"b": [2], "c": 4, "d": 5}
    assert differing(here, there) == ["a", "c", "d"]
    assert format_settings(["a", "c", "d"], here) == "a=1, c=3, d=None"
    assert format_settings("abcde", {"a": 1, "b": 2, "c": 3, "d": 4}) == "a=1, b=2, c=3 and 2 more"

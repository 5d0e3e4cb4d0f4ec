"""Labels that a forward takes for its loss: they are no part of what is traced, whatever the loss does with them."""

import warnings

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lighten import Prune, plan_pruning, shrink
from lighten.pruning.loss_arguments import without_loss_arguments


class Matches(nn.Module):
    """Answers with places; its loss picks the nearest place by value, which no graph can say."""

    def __init__(self, *, as_dict: bool = True) -> None:
        super().__init__()
        self.body, self.head, self.as_dict = nn.Linear(4, 16), nn.Linear(16, 3), as_dict

    def forward(self, x, mask=None, labels=None):
        places = self.head(self.body(x).relu())
        if mask is not None:
            places = places * mask
        if labels is None:
            return {"places": places} if self.as_dict else (places,)
        losses = []
        for own, label in zip(places, labels, strict=True):
            nearest = int((own - label["point"]).square().sum(-1).argmin())
            losses.append((own[nearest] - label["point"]).square().sum())
        loss = torch.stack(losses).mean()
        return {"loss": loss, "details": {"loss": loss}, "places": places} if self.as_dict else (loss, places)


def call(**more):
    return (torch.randn(2, 5, 4),), {"labels": [{"point": torch.randn(3)} for _ in range(2)], **more}


@pytest.mark.parametrize("as_dict", [True, False])
def test_labels_go_and_a_mask_stays(as_dict):
    given = call(mask=torch.ones(2, 5, 1))
    model = Matches(as_dict=as_dict).train()
    args, kwargs = without_loss_arguments(model, given)
    assert args is given[0]
    assert set(kwargs) == {"mask"}
    assert model.training


def test_labels_by_position_go_too():
    (x,), kwargs = call()
    args, rest = without_loss_arguments(Matches(), ((x, None, kwargs["labels"]), {}))
    assert args[0] is x
    assert args[1:] in ((), (None,))
    assert rest == {}
    assert without_loss_arguments(Matches(), ((x, torch.ones(2, 5, 1)), {}))[0][1:] != ()


def test_what_changes_the_answers_stays():
    class Shifts(Matches):
        def forward(self, x, labels=None):
            found = super().forward(x, labels=labels)
            return found | {"places": found["places"] + (0 if labels is None else 1)}

    assert set(without_loss_arguments(Shifts(), call())[1]) == {"labels"}


def test_what_cannot_run_without_labels_keeps_them():
    class Needs(Matches):
        def forward(self, x, labels):
            return super().forward(x, labels=labels)

    assert set(without_loss_arguments(Needs(), call())[1]) == {"labels"}


def test_a_loss_that_cannot_be_traced_is_no_obstacle_to_a_fit():
    class Learns(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Matches()

        def training_step(self, batch, index):
            return self.net(batch[0], labels=[{"point": point} for point in batch[1]])["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    module, prune = Learns(), Prune(0.5, live=True, module="net")
    data = DataLoader([(torch.randn(5, 4), torch.randn(3)) for _ in range(64)], 4)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(max_epochs=2, callbacks=[prune], **quiet).fit(module, data)
    assert module.net.body.out_features == 8
    assert shrink(module.net, prune.plan).body.out_features == 8


def test_an_encoder_with_labels_is_planned_as_without_them():
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30, num_labels=3
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 30, (2, 6))
    plain = plan_pruning(model, {"input_ids": ids}, 0.5)
    labelled = plan_pruning(model, {"input_ids": ids, "labels": torch.tensor([0, 2])}, 0.5)
    assert labelled.widths == plain.widths
    assert set(labelled.example["kwargs"]) == {"input_ids"} == set(plain.example["kwargs"])

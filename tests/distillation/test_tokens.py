"""Next tokens of causal language models, and labels that would be copied."""

import pytest
import torch
from torch import nn

from lighten.distillation.tokens import NextTokens, is_causal, shifted
from lighten.errors import UserError

IDS = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(0))
CALL = (), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


class Words(nn.Module):
    """A running mean over the tokens up to here, or over the whole text."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.table, self.head, self.causal = nn.Embedding(20, 8), nn.Linear(8, 20), causal
        self.calls = 0

    def forward(self, input_ids, attention_mask=None):
        self.calls += 1
        x = self.table(input_ids)
        steps = torch.arange(1, x.shape[1] + 1).view(-1, 1)
        return self.head(x.cumsum(1) / steps if self.causal else x + x.mean(1, keepdim=True))


def test_a_model_is_causal_if_later_tokens_change_nothing_before_and_is_left_as_it_was():
    for causal in (True, False):
        model = Words(causal)
        assert is_causal(model, CALL, IDS) is causal
        assert is_causal(model, ((IDS,), {}), IDS) is causal
        assert model.training
        assert model.calls == 0


def test_labels_that_repeat_the_inputs_are_moved_for_a_causal_model():
    found = NextTokens().labels(Words(True), CALL, IDS, [])
    assert torch.equal(found[:, :-1], IDS[:, 1:])
    assert (found[:, -1] == -100).all()


def test_a_prompt_without_labels_stays_without():
    labels = IDS.clone()
    labels[:, :3] = -100
    found = NextTokens().labels(Words(True), CALL, labels, [])
    assert torch.equal(found, shifted(labels))


@pytest.mark.parametrize("causal", [True, False])
def test_labels_that_differ_stay_in_this_batch_and_later_ones(causal):
    labels = shifted(IDS)
    tokens = NextTokens()
    assert tokens.labels(Words(causal), CALL, labels, []) is labels
    assert tokens.labels(Words(causal), CALL, IDS, []) is IDS


def test_a_copy_is_refused_once_it_is_no_accident():
    few = torch.full_like(IDS, -100)
    few[0] = IDS[0]
    tokens = NextTokens()
    assert tokens.labels(Words(False), CALL, few, []) is few
    with pytest.raises(UserError, match="learn to copy"):
        tokens.labels(Words(False), CALL, IDS, [])


def test_a_few_chosen_tokens_may_be_labelled_as_they_are():
    chosen = torch.where(torch.arange(6) < 2, IDS, -100)
    tokens = NextTokens()
    for _ in range(3):
        assert tokens.labels(Words(False), CALL, chosen, []) is chosen


def test_a_teacher_that_sees_other_tokens_is_refused():
    with pytest.raises(UserError, match="sees the tokens that follow"):
        NextTokens().labels(Words(True), CALL, IDS, [Words(False)])

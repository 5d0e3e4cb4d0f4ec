import pytest
import torch
from torch import nn
from zoo import ZOO, tokens

import lighten
from lighten.distillation.initialise import student_from_teacher
from lighten.errors import UserError
from lighten.pruning.narrow import shrink_feed_forward


def make(name):
    torch.manual_seed(0)
    return ZOO[name][0]().eval()


@torch.no_grad()
def logits(model):
    return model.eval()(**tokens()).logits


@pytest.mark.parametrize("name", ["bert", "bert_lm", "roberta", "distilbert"])
def test_feed_forward_nodes_alone_go_and_both_folders_give_it_back(name, tmp_path):
    teacher = make(name)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = student_from_teacher(teacher, layers=2)
    small = shrink_feed_forward(student, 0.25, tokens())
    changed = {k for k, v in small.state_dict().items() if v.shape != before[k].shape}
    assert {k.split(".layer.")[1].split(".", 1)[1] for k in changed} == (
        {"ffn.lin1.weight", "ffn.lin1.bias", "ffn.lin2.weight"}
        if name == "distilbert"
        else {"intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight"}
    )
    assert getattr(small.config, "hidden_dim" if name == "distilbert" else "intermediate_size") == 12
    assert small.training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())

    lighten.save(small, tmp_path / "lighten")
    assert torch.equal(logits(lighten.load(tmp_path / "lighten")), logits(small))
    small.save_pretrained(tmp_path / "hf")
    assert torch.equal(logits(type(small).from_pretrained(tmp_path / "hf")), logits(small))


def test_the_result_can_be_pruned_again():
    small = shrink_feed_forward(student_from_teacher(make("bert"), layers=2), 0.5, tokens())
    assert shrink_feed_forward(small, 0.5, tokens()).config.intermediate_size == 12


def test_all_of_it_is_a_copy():
    teacher = make("bert")
    same = shrink_feed_forward(teacher, 1.0, tokens())
    assert same is not teacher
    assert torch.equal(logits(same), logits(teacher))


@pytest.mark.parametrize("amount", [0, -0.5, 1.5, True])
def test_a_share_out_of_range_is_told(amount):
    with pytest.raises(UserError, match=r"expected the share of the feed-forward nodes to keep, in \(0, 1\]"):
        shrink_feed_forward(make("bert"), amount, tokens())


def test_another_model_is_told():
    with pytest.raises(UserError, match="Linear has no feed-forward layers of BERT, RoBERTa or DistilBERT"):
        shrink_feed_forward(nn.Linear(2, 2), 0.5, torch.zeros(1, 2))

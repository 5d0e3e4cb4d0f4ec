"""A teacher behind a cache: asked once for each sample and view, and it says what keeps it from that."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lighten.distillation.cache import TeacherCache
from lighten.distillation.cached_teacher import CachedTeacher, check_cacheable
from lighten.distillation.teacher import Teacher
from lighten.errors import UserError
from lighten.tasks import task_of

CPU = torch.device("cpu")
X = torch.randn(8, 3)
DATA = SimpleNamespace(fingerprint="f", train_samples=8, views=1)


class Counted(nn.Linear):
    asked = 0

    def forward(self, x):
        self.asked += 1
        return super().forward(x)


def opened(folder, model, **settings):
    cached = CachedTeacher(Teacher(model), TeacherCache(folder))
    cached.open(DATA, **{"outputs": 2, "precision": "32-true", "rank": 0, "world": 1, **settings})
    return cached


def test_without_a_cache_the_teacher_is_asked_every_time():
    model = Counted(3, 2)
    cached = CachedTeacher(Teacher(model))
    cached.open(None, outputs=None, precision="32-true", rank=0, world=1)
    for _ in range(2):
        assert torch.equal(cached.logits(((X,), {}), None, CPU, look=True), model(X))
    assert model.asked == 4
    cached.refresh()
    assert cached.dropped(0) == []


def test_with_a_cache_it_is_asked_once(tmp_path, capsys):
    model, keys = Counted(3, 2), torch.arange(8)
    cached = opened(tmp_path, model)
    first = cached.logits(((X,), {}), keys, CPU, look=False)
    assert torch.equal(cached.logits(((X,), {}), keys, CPU, look=False), first)
    assert model.asked == 1
    assert torch.equal(first, model(X))
    assert "8 samples x 1 views" in capsys.readouterr().out


def test_answers_to_what_a_step_makes_of_a_batch_are_kept_apart(tmp_path):
    model = Counted(3, 2)
    opened(tmp_path, model, asked="Own.net")
    opened(tmp_path, model, asked="Own.net")
    for other in ({}, {"asked": "Other.net"}):
        with pytest.raises(UserError, match="teacher cache"):
            opened(tmp_path, model, **other)


@pytest.mark.parametrize(("world", "rank", "expected"), [(1, 0, [6, 7]), (2, 1, [7])])
def test_each_rank_gets_its_share_of_the_samples_that_were_dropped(tmp_path, world, rank, expected):
    cached = opened(tmp_path, nn.Linear(3, 2), world=world, rank=rank)
    assert cached.dropped(0) == []  # nothing was asked: the epoch was cut short
    for keys in torch.arange(6).split(3):
        cached.logits(((X[keys],), {}), keys, CPU, look=False)
    assert cached.dropped(0) == expected


@pytest.mark.parametrize("look", [True, False])
def test_logits_that_are_not_finite_are_refused_where_they_are_looked_at(look):
    cached, bad = CachedTeacher(Teacher(nn.Linear(3, 2))), X.clone()
    bad[5] = torch.nan
    if not look:
        assert cached.logits(((bad,), {}), None, CPU, look=False).isnan().any()
        return
    with pytest.raises(UserError, match="not finite for sample 5"):
        cached.logits(((bad,), {}), None, CPU, look=True)


def test_layers_shards_and_pictures_need_the_teacher_itself():
    task = task_of("classification")
    check_cacheable([], task=task, sharded=False)
    with pytest.raises(UserError, match="hint, relations compare layers"):
        check_cacheable(["hint", "relations"], task=task, sharded=False)
    with pytest.raises(UserError, match="its shards need all"):
        check_cacheable([], task=task, sharded=True)
    with pytest.raises(UserError, match="a row of numbers a sample, task='segmentation' answers"):
        check_cacheable([], task=task_of("segmentation"), sharded=False)

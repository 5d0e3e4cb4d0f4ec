"""Inputs, tokens, labels and splits: what is wrong with them is found, and nothing else."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten.distillation.preflight import preflight
from lighten.distillation.preflight_data import (
    embedding_rows,
    find_input_problems,
    find_label_problems,
    find_shared_samples,
    find_single_sample_batches,
)
from lighten.distillation.preflight_samples import LoaderSamples, collect
from lighten.tasks import task_of
from lighten.utils.batch import BatchFormat

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(40, 5, generator=DRAW)
Y = torch.arange(40) % 3
IMAGES = torch.randn(40, 1, 6, 6, generator=DRAW)
NORMALISED = ((0.5,), (0.25,))
NAMES = ("cat", "dog", "cow")


def part_of(loader, name="training", samples=1000):
    part = LoaderSamples(name)
    collect(part, loader, samples, float("inf"), BatchFormat())
    return part


def batched(inputs, labels=None, size=16):
    return DataLoader(TensorDataset(inputs, torch.zeros(len(inputs)) if labels is None else labels), size)


def told(problems):
    return [f"{p.severity}: {p.message}" for p in problems]


def inputs_of(x, normalisation=None):
    return told(find_input_problems(part_of(batched(x)), normalisation, None, {}))


def labels_of(labels, task="classification", classes=3):
    return told(find_label_problems(part_of([(X[: len(labels)], labels)]), task_of(task), classes, NAMES))


def test_a_value_that_is_not_finite_is_found_in_its_sample():
    for sample in (0, 15, 16, 39):
        x = X.clone()
        x[sample, 2] = float("nan")
        (found,) = inputs_of(x)
        assert found.startswith(f"error: training sample {sample} has inputs that are not finite")
    assert inputs_of(X) == []


def test_inputs_that_are_all_the_same_are_found_and_one_other_is_enough():
    same = X[:1].repeat(40, 1)
    assert inputs_of(same)[0].startswith("error: all 40 training inputs looked at are the same")
    same[39, 4] += 1
    assert inputs_of(same) == []


@pytest.mark.parametrize(
    ("images", "normalisation", "says"),
    [
        (IMAGES, NORMALISED, None),
        (IMAGES, None, None),
        ((IMAGES * 40 + 128).round().clamp(0, 255), None, "whole values up to 255"),
        (IMAGES.sigmoid(), NORMALISED, r"in \[0.*, 0.*\]"),
        (IMAGES.sigmoid(), None, None),
        (IMAGES + 2, NORMALISED, f"mean {(IMAGES + 2).mean():.3g} and std {IMAGES.std():.3g} in"),
        (IMAGES * 0.1, NORMALISED, f"std {(IMAGES * 0.1).std():.3g} in"),
        (IMAGES * 9, NORMALISED, f"std {(IMAGES * 9).std():.3g} in"),
    ],
    ids=["sound", "unknown", "raw", "unit", "unit unknown", "shifted", "twice", "spread"],
)
def test_images_that_are_not_normalised_are_found(images, normalisation, says):
    found = inputs_of(images, normalisation)
    assert len(found) == (says is not None)
    if says is not None:
        assert found[0].startswith("warning: training images have ")
        assert re.search(says, found[0]), found


TOKENS = torch.randint(1, 50, (8, 6), generator=DRAW)
MASK = (torch.arange(6) < torch.arange(8)[:, None] % 4 + 3).long()
PADDED = TOKENS * MASK


class Embedding(nn.Module):
    def __init__(self, rows, positions):
        super().__init__()
        self.words, self.position_embeddings = nn.Embedding(rows, 2), nn.Embedding(positions, 2)

    def get_input_embeddings(self):
        return self.words


def tokens_of(ids, mask=None, rows=50, positions=60, pad=0):
    batches = [{"input_ids": ids, "labels": Y[: len(ids)]} | ({} if mask is None else {"attention_mask": mask})]
    tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=7)
    return told(find_input_problems(part_of(batches), None, tokenizer, {"teacher": Embedding(rows, positions)}))


def test_ids_and_lengths_are_held_against_the_embeddings():
    assert tokens_of(PADDED, MASK) == []
    high, (sample, place) = int(TOKENS.max()), divmod(int(TOKENS.argmax()), 6)
    assert tokens_of(PADDED, MASK, rows=int(PADDED.max()) + 1) == []
    (found,) = tokens_of(TOKENS, rows=high)
    assert int(TOKENS[sample, place]) == high
    assert found.startswith(
        f"error: training sample {sample} has the token id {high}, the teacher's embedding has {high}"
    )
    assert tokens_of(PADDED, MASK, positions=6) == []
    (found,) = tokens_of(PADDED, MASK, positions=5)
    assert found.startswith("error: training texts have 6 tokens, the teacher's position embedding is for 5;")


def test_padding_that_is_read_is_counted():
    (found,) = tokens_of(PADDED)
    assert found.startswith(f"warning: {int((PADDED == 0).sum())} padding tokens of the training texts")
    assert tokens_of(PADDED, pad=7) == [], "a token that ends texts as well is no padding"


def test_texts_of_padding_alone_and_mostly_of_padding_are_found():
    for mask, why in ((MASK * 0, "its attention_mask is all zero"), (None, "all of it is padding")):
        ids = TOKENS.clone()
        ids[5] = 0
        given = None if mask is None else torch.where(torch.arange(8)[:, None] == 5, mask, MASK)
        (found,) = tokens_of(ids, given)
        assert found.startswith(f"error: training sample 5 has no token to read, {why};")
    wide = (torch.zeros(8, 60, dtype=torch.int64), torch.zeros(8, 60, dtype=torch.int64))
    for kept, count in ((6, 0), (5, 1)):
        ids, mask = (x.clone() for x in wide)
        ids[:, :kept], mask[:, :kept] = 3, 1
        ids[0, 0] = 4
        found = tokens_of(ids, mask)
        assert len(found) == count
    assert found[0].startswith(f"warning: {55 / 60:.0%} of the training tokens are padding")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (Y, None),
        (torch.where(Y == 1, -100, Y), None),
        (torch.where(torch.arange(40) == 17, 3, Y), "error: training sample 17 has the label 3, expected 0 to 2;"),
        (torch.where(torch.arange(40) == 4, -1, Y), "error: training sample 4 has the label -1, expected 0 to 2;"),
        (torch.full((40,), 2), "warning: all 40 training labels looked at are 'cow', expected several;"),
        (torch.full((29,), 2), None),
        (torch.full((40,), -100), "error: all training labels looked at are -100,"),
        (Y.float(), "error: training labels are torch.float32, expected (batch,) of class indices;"),
        (Y == 0, "error: training labels are torch.bool,"),
        (Y[:, None], "error: training labels have the shape (40, 1) for 40 inputs, task='classification' expects"),
        (None, "error: training batches have no labels;"),
    ],
)
def test_labels_that_a_task_cannot_use_are_found(labels, says):
    found = (
        labels_of(labels)
        if labels is not None
        else told(find_label_problems(part_of([X]), task_of("classification"), 3, ()))
    )
    assert len(found) == (says is not None)
    assert says is None or found[0].startswith(says)


def test_numbers_are_labels_of_other_tasks():
    yes_or_no = torch.stack([Y == 0, Y == 1, Y == 2], 1).float()
    assert labels_of(yes_or_no, "multilabel") == labels_of(X[:, :3], "regression") == []
    (found,) = labels_of(yes_or_no[:, :2], "multilabel")
    assert "shape (40, 2) for 40 inputs, task='multilabel' expects (batch, 3);" in found
    yes_or_no[6, 1] = 1.5
    (found,) = labels_of(yes_or_no, "multilabel")
    assert found.startswith("error: training sample 6 has the label 1.5, expected 0 to 1;")
    ids = [{"input_ids": TOKENS, "labels": TOKENS[:, :5]}]
    (found,) = told(find_label_problems(part_of(ids), task_of("masked_lm"), 50, ()))
    assert "labels have the shape (8, 5) for 8 inputs, task='masked_lm' expects that of the tokens;" in found


def shared(train, validation, samples=1000):
    parts = part_of(train, samples=samples), part_of(validation, "validation", samples)
    return told(find_shared_samples(*parts, train, validation))


def test_samples_in_both_parts_are_counted():
    many = torch.arange(400.0)[:, None]
    assert shared(batched(many[:200]), batched(many[200:])) == []
    for overlap, found in ((2, 0), (3, 1), (50, 1)):
        lines = shared(batched(many[:200]), batched(many[200 - overlap : 400 - overlap]))
        assert len(lines) == found
    assert lines[0].startswith("warning: 50 of 200 validation inputs looked at are among 200 training inputs, a leak")


def test_subsets_of_one_data_set_are_compared_by_their_places():
    data = TensorDataset(torch.zeros(200, 1), torch.zeros(200))  # equal inputs: places alone tell

    def loaders(*ranges):
        return [DataLoader(Subset(data, r), 50) for r in ranges]

    assert shared(*loaders(range(100), range(100, 200))) == []
    (found,) = shared(*loaders(range(100), range(90, 200)))
    assert found.startswith("warning: 10 validation samples are training samples too")
    whole = DataLoader(data, 50)
    (found,) = shared(whole, whole)
    assert found.startswith("warning: 200 validation samples")


@pytest.mark.parametrize(
    ("samples", "size", "drop", "says"),
    [
        (33, 16, False, "the last"),
        (33, 16, True, None),
        (32, 16, False, None),
        (3, 1, False, "a"),
        (40, 39, False, "a"),
    ],
)
def test_batches_of_one_sample_are_found_where_there_is_batch_norm(samples, size, drop, says):
    loader = DataLoader(TensorDataset(X[:samples], Y[:samples]), size, drop_last=drop)
    seen = 1000 if says == "a" else 16
    norm = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))
    found = told(find_single_sample_batches(norm, part_of(loader, samples=seen), loader))
    assert len(found) == (says is not None)
    assert says is None or found[0].startswith(f"warning: {says} training batch has one sample, batch norm")
    for student in (None, nn.Linear(5, 5)):
        assert told(find_single_sample_batches(student, part_of(loader), loader)) == []


def test_rows_of_an_embedding():
    assert embedding_rows(Embedding(9, 30)) == 9, "positions are no tokens"
    assert embedding_rows(nn.Sequential(nn.Embedding(4, 2), nn.Embedding(7, 2))) == 7
    assert embedding_rows(nn.Linear(4, 2)) is None


@pytest.mark.parametrize(
    ("task", "labels", "bad", "message"),
    [
        ("regression", torch.randn(64, 3), float("nan"), "error: training sample 2 has the label nan, expected finite"),
        (
            "multilabel",
            (torch.rand(64, 3) > 0.5).float(),
            2.0,
            "error: training sample 2 has the label 2, expected 0 to 1",
        ),
    ],
)
def test_labels_of_other_tasks(task, labels, bad, message) -> None:
    inputs = torch.randn(128, 5)

    def run(labels):
        parts = [[(x, labels)] for x in inputs.split(64)]
        models = nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3))
        return "\n".join(told(preflight(*models, train=parts[0], validation=parts[1], task=task, num_classes=3)))

    assert run(labels) == ""
    labels = labels.clone()
    labels[2, 1] = bad
    assert re.match(message, run(labels))


BOXES = torch.tensor([[[1, 0.5, 0.5, 0.2, 0.2], [-1, 0, 0, 0, 0]]]).repeat(40, 1, 1)
BOXES[:, 0, 1] = torch.linspace(0.2, 0.8, 40)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            [3, 0.5, 0.5, 0.2, 0.2],
            "error: training sample 17 has the box of class 3 at (0.5, 0.5, 0.2, 0.2), expected ",
        ),
        (
            [0, 0.95, 0.5, 0.2, 0.2],
            "error: training sample 17 has the box of class 0 at (0.95, 0.5, 0.2, 0.2), expected",
        ),
        ([0, 0.5, 0.5, 0.0, 0.2], "error: training sample 17 has the box of class 0 at (0.5, 0.5, 0, 0.2), expected "),
    ],
)
def test_boxes_that_make_no_sense_are_found_in_their_picture(row, says):
    assert labels_of(BOXES, "detection") == []
    wrong = BOXES.clone()
    wrong[17, 1] = torch.tensor(row)
    (found,) = labels_of(wrong, "detection")
    assert found.startswith(says)


def test_pictures_without_boxes_are_legal_unless_there_are_no_others():
    empty = BOXES.clone()
    empty[1:, 0, 0] = -1
    assert labels_of(empty, "detection") == []
    empty[0, 0, 0] = -1
    assert labels_of(empty, "detection")[0].startswith("error: all training labels looked at are without a box")
    assert labels_of(BOXES[..., :4], "detection")[0].startswith("error: training labels have the shape (40, 2, 4)")


def test_batches_of_boxes_may_be_of_different_sizes():
    more = torch.cat([BOXES[:20], BOXES[:20]], 1)
    parts = [(X[:20], BOXES[20:]), (X[20:40], more)]
    assert told(find_label_problems(part_of(parts), task_of("detection"), 3, NAMES)) == []
    more[3, 2, 0] = 7
    (found,) = told(find_label_problems(part_of(parts), task_of("detection"), 3, NAMES))
    assert found.startswith("error: training sample 23 has the box of class 7")

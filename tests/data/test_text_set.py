import numpy as np
import pytest
import torch

from lighten.data.masking import IGNORED
from lighten.data.text_set import Masking, TextSet
from lighten.data.tokens import Tokens

LENGTHS = [3, 5, 9, 16, 2, 20]


def tokens(types=False):
    """Sample i has the ids 100 i, 100 i + 1 …"""
    ids = np.concatenate([100 * i + np.arange(length) for i, length in enumerate(LENGTHS)]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Tokens(ids, offsets, (ids % 2).astype(np.int8) if types else None)


def make(rows=range(6), *, types=False, **options):
    texts = [f"text {i}" for i in range(6)]
    rows = np.array(rows)
    given = {"pad_id": 7, "max_length": 20} | options
    return TextSet(tokens(types), torch.arange(6) * 10, texts, rows, **given)


def masking(**changes):
    given = {"mask_id": 999, "special": np.array([500]), "vocab_size": 600, "seed": 1, "each_epoch": True}
    return Masking(**given | changes)


@pytest.mark.parametrize(
    ("samples", "width"), [([0, 1], 8), ([4], 8), ([2, 0], 16), ([3], 16), ([5, 3, 0], 20), ([1, 2, 3, 4], 16)]
)
@pytest.mark.parametrize("types", [False, True])
def test_batches_are_padded_to_a_multiple_of_8_but_never_over_max_length(samples, width, types):
    batch = make(types=types).__getitems__([(3, i) for i in samples])
    assert list(batch) == ["input_ids", "attention_mask", *(["token_type_ids"] if types else []), "labels"]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert batch["labels"].tolist() == [10 * i for i in samples]
    for row, i in enumerate(samples):
        ids, padding = [100 * i + j for j in range(LENGTHS[i])], width - LENGTHS[i]
        assert batch["input_ids"][row].tolist() == ids + [7] * padding
        assert batch["attention_mask"][row].tolist() == [1] * LENGTHS[i] + [0] * padding
        if types:
            assert batch["token_type_ids"][row].tolist() == [x % 2 for x in ids] + [0] * padding


def test_a_part_numbers_its_own_samples():
    part = make([5, 1, 4], keyed=True)
    assert len(part) == 3
    assert part.texts == ["text 5", "text 1", "text 4"]
    assert part.labels.tolist() == [50, 10, 40]
    assert part.lengths.tolist() == [20, 5, 2]
    batch = part.__getitems__([(4, 1), (4, 0)])
    assert batch["input_ids"][:, 0].tolist() == [100, 500]
    assert batch["keys"].tolist() == [1, 0]
    assert part[2]["input_ids"].tolist() == [400, 401, *[7] * 6]


def test_masks_have_a_view_an_epoch():
    part = make([1, 2, 3, 5], masking=masking(), keyed=True)
    first, later = part.__getitems__([(0, 1), (0, 3)]), part.__getitems__([(2, 1), (2, 3)])
    assert first["keys"].tolist() == [1, 3]
    assert later["keys"].tolist() == [9, 11]
    assert first["labels"].shape == first["input_ids"].shape == (2, 20)
    assert not torch.equal(first["labels"], later["labels"])
    whole = make([1, 2, 3, 5]).__getitems__([(0, 1), (0, 3)])
    asked = first["labels"] != IGNORED
    assert torch.equal(first["labels"][asked], whole["input_ids"][asked])
    assert asked.sum(1).tolist() == [1, 3]
    assert torch.equal(first["attention_mask"], whole["attention_mask"])


def test_padding_and_special_tokens_are_not_asked_for():
    part = make(masking=masking(special=np.array([200, 201, 202])))
    for epoch in range(40):
        batch = part.__getitems__([(epoch, i) for i in range(6)])
        assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
        assert not set(batch["labels"][2].tolist()) & {200, 201, 202}


def test_fixed_masks_are_those_of_epoch_0():
    part, moving = make(masking=masking(each_epoch=False)), make(masking=masking())
    places = [(0, i) for i in range(6)], [(5, i) for i in range(6)]
    a, b, c = part.__getitems__(places[0]), part.__getitems__(places[1]), moving.__getitems__(places[0])
    for key in a:
        assert torch.equal(a[key], b[key])
        assert torch.equal(a[key], c[key])

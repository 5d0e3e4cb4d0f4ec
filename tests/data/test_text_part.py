import numpy as np
import pytest
import torch

from lighten.data.text_part import Part, Texts, check_part, hold_out
from lighten.errors import UserError


def part(count=60, classes=3, pairs=None):
    return Part([f"text {i}" for i in range(count)], torch.arange(count) % classes, pairs)


def chosen(whole, count=12, **options):
    rest, held_out = hold_out(whole, count, **{"by_class": True} | options)
    assert sorted([*rest, *held_out]) == list(range(len(whole.texts)))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(held_out) > 0).all()
    return held_out


def test_each_class_gives_its_share():
    whole = part(classes=12)
    assert torch.bincount(whole.labels[chosen(whole, 24)]).tolist() == [2] * 12
    assert len(chosen(whole, 24, by_class=False)) == 24


def test_the_order_of_rows_does_not_matter():
    whole = part()
    order = np.random.default_rng(0).permutation(60)
    moved = whole.select(order)
    assert sorted(order[chosen(moved)]) == chosen(whole).tolist()


def test_no_text_is_on_both_sides():
    texts = [f"text {i // 3}" for i in range(90)]
    whole = Part(texts, torch.arange(90) % 2)
    held_out = chosen(whole, 10)
    assert len(held_out) == 30
    inside = {texts[i] for i in held_out}
    assert len(inside) == 10
    assert not inside & {texts[i] for i in range(90) if i not in set(held_out.tolist())}


def test_a_pair_is_equal_where_both_texts_are():
    whole = Part(["a"] * 40, torch.zeros(40, dtype=torch.int64), [f"b {i // 2}" for i in range(40)])
    held_out = chosen(whole, 5)
    assert len({whole.pairs[i] for i in held_out}) == 5
    assert len(held_out) == 10
    turned = Part(["ab", "a"], torch.zeros(2, dtype=torch.int64), ["c", "bc"])
    assert len(chosen(turned, 1)) == 1


def test_digest_is_of_all():
    labels = torch.arange(4) % 2
    base = Texts(Part(list("abcd"), labels), Part(["e"], labels[:1]), ("x", "y"))
    others = [
        Texts(Part(list("abdc"), labels), base.test, ("x", "y")),
        Texts(Part(list("abcd"), 1 - labels), base.test, ("x", "y")),
        Texts(Part(list("abcd"), labels, list("abcd")), base.test, ("x", "y")),
        Texts(base.train, Part(["f"], labels[:1]), ("x", "y")),
        Texts(base.train, base.test, ("y", "x")),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6
    assert base.digest == Texts(base.train, base.test, ("x", "y")).digest


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Part([], torch.zeros(0, dtype=torch.int64)), "data d: the test part has no rows, expected at least one"),
        (
            Part(["a", " ", "b", ""], torch.zeros(4, dtype=torch.int64)),
            "data d: 2 texts of the test part are empty, the first in row 2; remove these rows, or fill them in",
        ),
        (
            Part(["a", "b"], torch.zeros(2, dtype=torch.int64), ["c", ""]),
            "data d: 1 second texts of the test part are empty, the first in row 2; remove these rows, or fill them in",
        ),
        (
            Part(["a", "b"], torch.zeros(2, dtype=torch.int64), ["c"]),
            "data d: the test part has 2 texts and 1 second texts, expected as many",
        ),
        (
            Part(["a", "b"], torch.zeros(3, dtype=torch.int64)),
            "data d: the test part has 2 texts and 3 labels, expected as many",
        ),
        (
            Part(["a", "b", "c"], torch.tensor([0, 3, -1])),
            "data d: label 3 in row 2 of the test part, expected 0 to 2; fix it, or name more classes",
        ),
        (
            Part(["a", "b", "c"], torch.tensor([0, 1, -1])),
            "data d: label -1 in row 3 of the test part, expected 0 to 2; fix it, or name more classes",
        ),
    ],
)
def test_bad_parts(given, says):
    with pytest.raises(UserError) as caught:
        check_part(given, "test", "data d", classes=3)
    assert str(caught.value) == says

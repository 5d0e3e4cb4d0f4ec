import numpy as np
import pytest

from lighten.data.masking import IGNORED, mask_tokens
from lighten.training.order import draw, draw_below

SPECIAL = 5
VOCABULARY = 1000
MASK = 4


def texts(samples=200, length=24, seed=0):
    """Random ids, [CLS] in front, texts of different lengths with [SEP] and padding behind."""
    random = np.random.default_rng(seed)
    ids = random.integers(SPECIAL, VOCABULARY, (samples, length))
    lengths = random.integers(3, length + 1, samples)
    ids[:, 0] = 2
    ids[np.arange(samples), lengths - 1] = 3
    ids[np.arange(length) >= lengths[:, None]] = 0
    return ids


def run(ids, *, seed=7, epoch=1, samples=None):
    samples = np.arange(len(ids)) if samples is None else samples
    return mask_tokens(
        ids,
        ids >= SPECIAL,
        seed=seed,
        epochs=np.full(len(ids), epoch),
        samples=samples,
        mask_id=MASK,
        vocab_size=VOCABULARY,
    )


def mask_reference(row, *, seed, epoch, sample):
    """One text, token by token: who draws the lowest numbers is asked for."""

    def one(draw_one, stream):
        return int(draw_one(np.array([epoch]), np.array([sample]), stream)[0])

    ordinary = [i for i, token in enumerate(row) if token >= SPECIAL]
    ticket = {i: one(lambda e, s, t: draw(seed, e, s, stream=t), 16 + 3 * i) for i in ordinary}
    count = max(1, int(0.15 * len(ordinary) + 0.5)) if ordinary else 0
    inputs, labels = list(row), [IGNORED] * len(row)
    for i in sorted(ordinary, key=ticket.__getitem__)[:count]:
        labels[i] = row[i]
        tenth = one(lambda e, s, t: draw_below(10, seed, e, s, stream=t), 17 + 3 * i)
        if tenth < 8:
            inputs[i] = MASK
        elif tenth == 8:
            inputs[i] = one(lambda e, s, t: draw_below(VOCABULARY, seed, e, s, stream=t), 18 + 3 * i)
    return inputs, labels


def test_agrees_with_token_by_token_reference():
    ids = texts(60)
    inputs, labels = run(ids)
    for sample, row in enumerate(ids.tolist()):
        expected = mask_reference(row, seed=7, epoch=1, sample=sample)
        assert (inputs[sample].tolist(), labels[sample].tolist()) == expected


def test_shares_are_those_of_the_paper():
    ids = np.random.default_rng(1).integers(SPECIAL, VOCABULARY, (2000, 40))
    inputs, labels = run(ids)
    asked = labels != IGNORED
    assert (asked.sum(1) == 6).all()
    assert np.array_equal(labels[asked], ids[asked])
    assert np.array_equal(inputs[~asked], ids[~asked])
    masked, kept = (inputs == MASK)[asked].mean(), (inputs == ids)[asked].mean()
    assert masked == pytest.approx(0.8, abs=0.012)  # 12,000 tokens: three standard deviations
    assert kept == pytest.approx(0.1, abs=0.01)
    assert asked.mean(0) == pytest.approx(np.full(40, 0.15), abs=0.04)  # five


def test_special_tokens_and_padding_are_never_asked_for_and_every_text_is():
    ids = texts()
    inputs, labels = run(ids)
    assert (labels[ids < SPECIAL] == IGNORED).all()
    assert np.array_equal(inputs[ids < SPECIAL], ids[ids < SPECIAL])
    assert ((labels != IGNORED).sum(1) >= (ids >= SPECIAL).any(1)).all()
    assert ((ids >= SPECIAL).sum(1) == 1).any()


def test_a_text_without_ordinary_tokens_is_left_alone():
    ids = np.array([[2, 1, 3, 0]])
    inputs, labels = run(ids)
    assert np.array_equal(inputs, ids)
    assert (labels == IGNORED).all()


def test_neither_batch_nor_padding_matters():
    ids = texts(40)
    inputs, labels = run(ids)
    some = np.array([31, 4, 17])
    wider = np.pad(ids[some], ((0, 0), (0, 8)))
    again = run(wider, samples=some)
    assert np.array_equal(again[0][:, :24], inputs[some])
    assert np.array_equal(again[1][:, :24], labels[some])


def test_seed_epoch_and_sample_all_matter():
    ids = np.tile(texts(1, 60), (100, 1))
    base = run(ids)[1] != IGNORED
    for other in (run(ids, seed=8), run(ids, epoch=2), run(ids, samples=np.arange(100) + 100)):
        assert (base & (other[1] != IGNORED)).sum() < 0.3 * base.sum()

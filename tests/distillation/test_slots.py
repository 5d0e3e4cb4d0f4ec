import math
import zlib

import numpy as np
import pytest
import torch

from lighten.distillation.slots import Slots


def draw(batch=20, outputs=7, seed=0):
    return 4 * torch.randn(batch, outputs, generator=torch.Generator().manual_seed(seed))


def there_and_back(slots, values):
    return slots.decode(slots.encode(values, np.arange(len(values))))


def top_k_reference(row, k):
    """Class by class, in Python's own floats."""
    total = sum(math.exp(x) for x in row)
    probabilities = [math.exp(x) / total for x in row]
    largest = sorted(range(len(row)), key=lambda j: -row[j])[:k]
    rest = (1 - sum(probabilities[j] for j in largest)) / (len(row) - k)
    return [math.log(probabilities[j]) if j in largest else math.log(rest) for j in range(len(row))]


def test_float32_comes_back_as_it_was():
    values = draw()
    assert torch.equal(there_and_back(Slots(7, "float32"), values), values)


def test_float16_rounds_once():
    values = draw()
    back = there_and_back(Slots(7, "float16"), values)
    assert torch.equal(back, values.half().float())
    assert torch.equal(there_and_back(Slots(7, "float16"), back), back)


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_top_k_agrees_with_the_reference(k, dtype, tolerance):
    values = draw()
    back = there_and_back(Slots(7, dtype, k), values)
    expected = torch.tensor([top_k_reference(row, k) for row in values.tolist()])
    assert torch.allclose(back, expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(back.exp().sum(1), torch.ones(20), atol=5 * tolerance)


def test_kept_classes_are_the_outputs_up_to_a_constant():
    values = draw()
    off = there_and_back(Slots(7, "float32", 3), values) - values
    kept = off.gather(1, values.topk(3, 1).indices)
    assert torch.allclose(kept, kept[:, :1].expand(-1, 3), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_teacher_that_is_very_sure_leaves_finite_numbers(dtype):
    values = torch.tensor([[90.0, 0.0, 1.0, -50.0], [3e38, -3e38, 0.0, 1.0]])
    back = there_and_back(Slots(4, dtype, 1), values)
    assert back.isfinite().all()
    assert back.argmax(1).tolist() == [0, 0]
    assert back[0, 1:].tolist() == pytest.approx([-90 + math.log((1 + math.e) / 3)] * 3, rel=1e-3)


@pytest.mark.parametrize(
    ("slots", "size"),
    [
        (Slots(10, "float32"), 44),
        (Slots(10, "float16"), 24),
        (Slots(1000, "float16", 8), 4 + 9 * 2 + 8 * 2),
        (Slots(1 << 16, "float32", 8), 4 + 9 * 4 + 8 * 2),
        (Slots((1 << 16) + 1, "float32", 8), 4 + 9 * 4 + 8 * 4),
    ],
)
def test_sizes(slots, size):
    assert slots.fields.itemsize == size


def test_the_last_of_many_classes_is_found_again():
    for outputs in (1 << 16, (1 << 16) + 1):
        values = torch.zeros(1, outputs)
        values[0, -1] = 20
        assert there_and_back(Slots(outputs, "float32", 1), values).argmax() == outputs - 1


@pytest.mark.parametrize("slots", [Slots(3, "float32"), Slots(3, "float16", 1)])
def test_every_flipped_bit_is_seen(slots):
    keys = np.array([5])
    row = slots.encode(draw(1, 3), keys)
    assert slots.sound(row, keys).all()
    for bit in range(8 * row.itemsize):
        other = bytearray(row.tobytes())
        other[bit // 8] ^= 1 << bit % 8
        assert not slots.sound(np.frombuffer(bytes(other), slots.fields), keys).any(), bit


def test_a_slot_in_the_place_of_another_is_seen():
    slots = Slots(3, "float32")
    row = slots.encode(draw(1, 3), np.array([5]))
    assert not slots.sound(row, np.array([6])).any()


def test_what_no_teacher_says_is_not_sound():
    """Whoever can write a slot can also write its checksum."""
    keys = np.array([5])
    for slots, change in (
        (Slots(3, "float32", 1), {"classes": 3}),
        (Slots(3, "float32", 1), {"values": math.inf}),
        (Slots(3, "float16"), {"values": math.nan}),
    ):
        row = slots.encode(draw(1, 3), keys)
        for field, value in change.items():
            row[field] = value
        row["crc"] = zlib.crc32(row.tobytes()[4:], 5)
        assert not slots.sound(row, keys).any()

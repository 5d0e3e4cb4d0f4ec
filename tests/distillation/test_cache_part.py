"""The file of one process: sparse, checked by its digest and size, and written slot by slot."""

import numpy as np
import pytest
import torch

from lighten.distillation.cache_part import CachePart
from lighten.distillation.slots import Slots

KEYS = np.array([5, 1])


@pytest.fixture
def part(tmp_path):
    part = CachePart(tmp_path / "part-0.bin", b"d" * 64, Slots(3, "float32"), keys=10)
    part.create()
    return part


def test_a_new_part_has_no_outputs(part):
    assert not part.fault()
    assert part.path.stat().st_size == part.size == 64 + 10 * 16
    assert not part.rows()["crc"].any()
    assert [path.name for path in part.path.parent.iterdir()] == ["part-0.bin"]


def test_what_is_written_is_read(part):
    rows = part.slots.encode(torch.randn(2, 3), KEYS)
    part.write(KEYS, rows)
    part.flush()
    assert (part.rows()[KEYS] == rows).all()
    assert np.flatnonzero(part.rows()["crc"]).tolist() == [1, 5]


@pytest.mark.parametrize(
    ("content", "says"), [(b"d" * 64, "has 64 bytes, expected 224"), (b"x" * 224, "another cache"), (None, "is gone")]
)
def test_what_is_wrong_is_told(part, content, says):
    part.path.unlink() if content is None else part.path.write_bytes(content)
    assert says in part.fault()

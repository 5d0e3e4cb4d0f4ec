import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from lighten.distillation.cache import TeacherCache
from lighten.errors import UserError

IDENTITY = {"teacher": "a" * 64, "tokenizer": "b" * 64, "precision": "bf16"}
SAMPLES, VIEWS, OUTPUTS = 50, 2, 5
KEYS = SAMPLES * VIEWS
SLOT = 4 + 4 * OUTPUTS


@pytest.fixture
def opened(tmp_path):
    def build(*, identity=IDENTITY, rank=0, world=1, samples=SAMPLES, views=VIEWS, outputs=OUTPUTS, **options):
        cache = TeacherCache(tmp_path / "cache", **options)
        cache.open(identity, samples=samples, views=views, outputs=outputs, rank=rank, world=world)
        return cache

    return build


def answers(keys, outputs=OUTPUTS):
    """What the teacher of these tests says: a pure function of the key."""
    return torch.sin(keys[:, None] * 1.7 + torch.arange(outputs)) * 3


def fill(cache, keys=range(KEYS)):
    keys = torch.tensor(list(keys), dtype=torch.int64)
    return cache.write(keys, answers(keys))


def check(cache, expected):
    """Exactly the ``expected`` keys are known, and what is known is right to the last bit."""
    keys = torch.arange(KEYS)
    values, known = cache.read(keys)
    assert set(keys[known].tolist()) == set(expected)
    assert torch.equal(values[known], answers(keys)[known])
    assert not values[~known].any()
    assert cache.filled == len(set(expected)) / KEYS


def told(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_known_before_it_is_written(opened):
    cache = opened()
    check(cache, [])
    keys = torch.tensor([99, 0, 42])
    assert torch.equal(fill(cache, keys), answers(keys))
    check(cache, [99, 0, 42])
    values, known = cache.read(torch.tensor([1, 42]))
    assert known.tolist() == [False, True]
    assert values.dtype == torch.float32
    assert torch.equal(values[0], torch.zeros(OUTPUTS))


def test_a_slot_never_written_is_not_known_even_where_zeros_have_the_crc_zero(opened, monkeypatch):
    cache = opened()
    monkeypatch.setattr("zlib.crc32", lambda *_: 0)
    check(cache, [])


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_is_stored_as_float32(opened, given):
    cache, keys = opened(), torch.arange(3)
    stored = cache.write(keys, answers(keys).to(given).requires_grad_())
    assert stored.dtype == torch.float32
    assert not stored.requires_grad
    assert torch.equal(stored, answers(keys).to(given).float())


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"top_k": 2}, {"dtype": "float16", "top_k": 2}])
def test_the_first_epoch_gets_the_numbers_of_later_ones(opened, options):
    cache = opened(**options)
    stored = fill(cache)
    for again in (cache, opened(**options)):
        values, known = again.read(torch.arange(KEYS))
        assert known.all()
        assert torch.equal(values, stored)
    assert torch.equal(stored, answers(torch.arange(KEYS))) == (options == {})
    assert torch.equal(stored.argmax(1), answers(torch.arange(KEYS)).argmax(1))


def test_an_empty_batch(opened):
    cache = opened()
    none = torch.empty(0, dtype=torch.int64)
    assert cache.write(none, torch.empty(0, OUTPUTS)).shape == (0, OUTPUTS)
    assert cache.read(none)[0].shape == (0, OUTPUTS)


def test_a_later_run_takes_it_up(opened):
    fill(opened(), range(30))
    again = opened()
    fill(again, range(70, 80))
    check(opened(), [*range(30), *range(70, 80)])


def test_parts_of_other_ranks_are_read(opened):
    ranks = [opened(rank=rank, world=3) for rank in range(3)]
    for rank, cache in enumerate(ranks):
        fill(cache, range(rank, KEYS, 3))
    for cache in ranks:
        cache.refresh()
        check(cache, range(KEYS))
    check(opened(), range(KEYS))  # one process
    check(opened(rank=5, world=6), range(KEYS))  # more processes


def test_what_another_rank_has_damaged_counts_from_its_own_part(opened):
    first, second = opened(world=2), opened(rank=1, world=2)
    fill(first, range(60))
    fill(second, range(40, KEYS))
    flip(part(first), 45 * SLOT + 7)
    first.refresh()
    check(first, range(KEYS))


def part(cache, rank=0):
    return cache.folder / f"part-{rank}.bin"


def flip(path, at, header=64):
    with path.open("r+b") as file:
        file.seek(header + at)
        (byte,) = file.read(1)
        file.seek(header + at)
        file.write(bytes([byte ^ 16]))


WRITER = """
import sys, time
import torch
sys.path.insert(0, sys.argv[1])
from test_cache import *
folder, rank, world, rounds, pause = Path(sys.argv[2]), *map(int, sys.argv[3:6]), float(sys.argv[6])
cache = TeacherCache(folder)
cache.open(IDENTITY, samples=SAMPLES, views=VIEWS, outputs=OUTPUTS, rank=rank, world=world)
for turn in range(rounds):
    for start in range(0, KEYS, 10):
        keys = torch.arange(start, start + 10)
        keys = keys[keys % world == rank]
        values, known = cache.read(keys)
        assert torch.equal(values[known], answers(keys)[known])
        cache.write(keys, answers(keys))
        print(start, flush=True)
        time.sleep(pause)
cache.refresh()
"""


def writer(folder, rank, world, *, rounds, pause=0.0):
    arguments = [str(Path(__file__).parent), str(folder), str(rank), str(world), str(rounds), str(pause)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_write_at_once(tmp_path, opened):
    writers = [writer(tmp_path / "cache", rank, 2, rounds=20) for rank in (0, 1)]
    for process in writers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    check(opened(), range(KEYS))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["meta.json", "part-0.bin", "part-1.bin"]


@pytest.mark.parametrize("pause", [0.02, 0])
def test_a_killed_process_leaves_only_good_slots(tmp_path, opened, pause):
    process = writer(tmp_path / "cache", 0, 1, rounds=1_000_000, pause=pause)
    for _ in range(4):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    cache = opened()
    _, known = cache.read(torch.arange(KEYS))
    assert known[:30].all()
    assert pause == 0 or not known.all()
    check(cache, known.nonzero().flatten().tolist())
    fill(cache, (~known).nonzero().flatten().tolist())
    check(opened(), range(KEYS))


def test_a_torn_slot_is_computed_again(opened):
    cache = opened()
    fill(cache)
    with part(cache).open("r+b") as file:
        file.seek(64 + 17 * SLOT + 10)
        file.write(bytes(SLOT - 10))
    cache = opened()
    check(cache, set(range(KEYS)) - {17})
    fill(cache, [17])
    check(cache, range(KEYS))


@pytest.mark.parametrize("at", [0, 3, 4, SLOT - 1])
def test_a_flipped_bit_is_found(opened, at):
    cache = opened()
    fill(cache)
    flip(part(cache), 33 * SLOT + at)
    check(cache, set(range(KEYS)) - {33})


@pytest.mark.parametrize("size", [0, 63, 64, 64 + 40 * SLOT + 3, 64 + KEYS * SLOT - 1, 64 + KEYS * SLOT + 1])
def test_a_part_cut_short_is_rebuilt_with_a_line(opened, size):
    cache = opened()
    fill(cache)
    with part(cache).open("r+b") as file:
        file.truncate(size)
    with pytest.warns(UserWarning, match="part-0.bin has") as lines:
        again = opened()
    (line,) = lines
    assert str(line.message) == (
        f"teacher cache: {part(cache)} has {size:,} bytes, expected 2,464: "
        "it is removed, and its outputs are computed again"
    )
    check(again, [])
    fill(again)
    check(opened(), range(KEYS))


def test_a_damaged_header_is_rebuilt_with_a_line(opened):
    cache = opened()
    fill(cache)
    flip(part(cache), 5, header=0)
    with pytest.warns(UserWarning, match="part-0.bin belongs to another cache or is damaged: it is removed"):
        again = opened()
    check(again, [])


def test_a_part_of_another_cache_is_never_read(opened, tmp_path):
    fill(opened())
    other = TeacherCache(tmp_path / "other")
    other.open({**IDENTITY, "teacher": "c" * 64}, samples=SAMPLES, views=VIEWS, outputs=OUTPUTS)
    shutil.copy(tmp_path / "cache" / "part-0.bin", tmp_path / "other" / "part-1.bin")
    other.refresh()
    check(other, [])


def test_rank_zero_clears_damaged_parts_of_ranks_that_are_gone(opened):
    fill(opened(), range(20))
    fill(gone := opened(rank=3, world=4), range(20, 40))
    with part(gone, 3).open("r+b") as file:
        file.truncate(100)
    check(opened(rank=1, world=2), range(20))  # says nothing, removes nothing
    assert part(gone, 3).exists()
    with pytest.warns(UserWarning, match="part-3.bin has 100 bytes"):
        check(opened(world=2), range(20))
    assert not part(gone, 3).exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"schema": 1}', b'{"identity": 3}', b"\xff\xfe\x00", b"[" * 100_000]
)
def test_unreadable_meta_data_are_rebuilt_with_a_line_and_cost_nothing(opened, content):
    cache = opened()
    fill(cache)
    (cache.folder / "meta.json").write_bytes(content)
    check(opened(rank=1, world=2), range(KEYS))  # leaves it to rank zero
    with pytest.warns(UserWarning, match=r"meta\.json is unreadable") as lines:
        again = opened()
    assert len(lines) == 1
    check(again, range(KEYS))
    assert json.loads((cache.folder / "meta.json").read_text())["identity"] == IDENTITY


def test_unreadable_meta_data_let_no_other_teacher_in(opened):
    cache = opened()
    fill(cache)
    (cache.folder / "meta.json").write_bytes(b"{")
    with pytest.warns(UserWarning, match=r"meta\.json is unreadable|part-0\.bin belongs to another") as lines:
        other = opened(identity={**IDENTITY, "teacher": "c" * 64})
    assert len(lines) == 2
    check(other, [])


@pytest.mark.parametrize(
    ("changes", "there", "here"),
    [
        ({"identity": {**IDENTITY, "teacher": "c" * 64}}, "teacher aaaaaaaaaaaa…", "teacher cccccccccccc…"),
        ({"identity": {**IDENTITY, "tokenizer": "d" * 64}}, "tokenizer bbbbbbbbbbbb…", "tokenizer dddddddddddd…"),
        ({"identity": {**IDENTITY, "seed": "3"}}, "seed none", "seed 3"),
        (
            {"identity": {"teacher": "a" * 64}},
            "tokenizer bbbbbbbbbbbb…, precision bf16",
            "tokenizer none, precision none",
        ),
        ({"dtype": "float16"}, "dtype float32", "dtype float16"),
        ({"top_k": 2}, "top_k none", "top_k 2"),
        ({"samples": 49, "views": 3}, "samples 50, views 2", "samples 49, views 3"),
        ({"outputs": 4}, "outputs 5", "outputs 4"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_outputs_of_another_teacher_are_refused(opened, changes, there, here, rank):
    cache = opened()
    fill(cache)
    with pytest.raises(UserError) as caught:
        opened(rank=rank, world=2, **changes)
    assert told(caught) == (
        f"teacher cache {cache.folder} holds outputs for {there}; this run has {here}; "
        "choose another folder, or remove this one to fill it again"
    )
    check(opened(), range(KEYS))


def test_a_later_schema_is_refused(opened):
    meta = opened().folder / "meta.json"
    meta.write_text(meta.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(UserError, match="holds outputs for schema 2; this run has schema 1"):
        opened()


def test_meta_data_say_what_is_inside(opened):
    assert json.loads((opened(dtype="float16").folder / "meta.json").read_text()) == {
        "schema": 1, "identity": IDENTITY, "samples": 50, "views": 2, "outputs": 5, "dtype": "float16", "top_k": None,
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"dtype": "float16", "top_k": 2}])
def test_the_size_announced_is_the_size_of_the_full_file(opened, options):
    cache = opened(**options)
    fill(cache)
    assert part(cache).stat().st_size == cache.size


def test_many_processes_never_take_more_than_announced(opened):
    ranks = [opened(rank=rank, world=3, samples=3000) for rank in range(3)]
    for rank, cache in enumerate(ranks):
        fill(cache, range(rank, 6000, 3))
    taken = sum(part(ranks[0], rank).stat().st_blocks * 512 for rank in range(3))
    assert taken <= ranks[0].size + 3 * 4096  # the last block of each file is begun
    assert ranks[0].size <= 3 * opened(samples=3000).size
    wide = [TeacherCache(ranks[0].folder / str(world)) for world in (1, 4)]
    for cache, world in zip(wide, (1, 4), strict=True):
        cache.open(IDENTITY, samples=1000, views=1, outputs=30_000, world=world)
    assert wide[1].size < 1.1 * wide[0].size  # slots of many blocks are not shared


def test_announcement(opened):
    cache = opened(samples=12_000, views=4, outputs=10, dtype="float16")
    assert cache.announce() == (
        f"teacher cache: 12,000 samples x 4 views x 10 outputs in float16: 1.2 MB in {cache.folder}"
    )


def test_announcement_of_the_largest_few(tmp_path):
    cache = TeacherCache(tmp_path, dtype="float16", top_k=8)
    cache.open({}, samples=1_000_000, views=1, outputs=30_522)
    assert "1,000,000 samples x 1 views x 30,522 outputs (the 8 largest) in float16: 38.0 MB" in cache.announce()


def test_an_empty_cache_takes_no_room(opened):
    cache = opened(samples=1_000_000)
    assert part(cache).stat().st_size > 40_000_000
    assert part(cache).stat().st_blocks * 512 < 100_000


def test_a_disk_too_small_is_told_at_once(opened, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2000, 2000))
    with pytest.raises(UserError) as caught:
        opened()
    assert "needs 2.5 kB more when full, the disk has 2.0 kB free; make room, choose another folder" in told(caught)


def test_a_full_cache_needs_no_more_room(opened, monkeypatch):
    fill(opened())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 0))
    check(opened(), range(KEYS))


def test_a_disk_that_fills_up_is_told_in_one_line(opened, monkeypatch):
    cache = opened()
    fill(cache, range(10))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(UserError) as caught:
        fill(cache, range(10, 20))
    assert told(caught) == (
        f"teacher cache {cache.folder} cannot be used (No space left on device); "
        "make room or choose another folder, or leave the cache out"
    )
    check(cache, range(10))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "cache").write_text("")
    cache = TeacherCache(tmp_path / "cache")
    with pytest.raises(UserError, match="cannot be used") as caught:
        cache.open({}, samples=1, views=1, outputs=1)
    told(caught)


@pytest.mark.parametrize("key", [-1, KEYS, 3 * KEYS + 7])
def test_keys_out_of_range(opened, key):
    cache = opened()
    keys = torch.tensor([3, key])
    for act in (lambda: cache.read(keys), lambda: cache.write(keys, answers(keys))):
        with pytest.raises(UserError) as caught:
            act()
        assert (
            f"key {key} of sample {key % SAMPLES} is out of range, expected 0 to 99 for 50 samples x 2 views"
            in told(caught)
        )
    check(cache, [])


@pytest.mark.parametrize("keys", [torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64), torch.tensor([True])])
def test_keys_of_another_kind(opened, keys):
    with pytest.raises(UserError, match=r"expected int64 \(batch,\)"):
        opened().read(keys)


@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (3,), (3, 5, 1)])
def test_outputs_of_another_shape(opened, shape):
    with pytest.raises(UserError) as caught:
        opened().write(torch.tensor([52, 1, 2]), torch.zeros(shape))
    assert f"outputs of shape {shape} for sample 2 and on, expected (3, 5)" in told(caught)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_name_the_sample(opened, number):
    cache = opened()
    values = torch.zeros(3, 5)
    values[1, 4] = number
    with pytest.raises(UserError) as caught:
        cache.write(torch.tensor([0, 57, 9]), values)
    assert f"output 4 of sample 7 (view 1) is {number}, which is not finite" in told(caught)
    check(cache, [])


def test_numbers_too_large_for_float16_name_the_sample(opened):
    cache = opened(dtype="float16")
    with pytest.raises(UserError) as caught:
        cache.write(torch.tensor([57]), torch.tensor([[0, 70_000.0, 0, 0, 0]]))
    assert "output 1 of sample 7 (view 1) is inf, which does not fit float16; store float32" in told(caught)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "half"}, "dtype='half': Choices: float16, float32"),
        ({"top_k": 0}, "top_k=0: expected a whole number, 1 or more"),
        ({"top_k": True}, "top_k=True: expected a whole number"),
        ({"top_k": 5}, "top_k=5, expected below the 5 outputs"),
        ({"views": None}, "views=None, another view of each sample in every epoch, is never read again; set views"),
        ({"views": 0}, "views=0: expected a whole number, 1 or more"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_bad_settings(opened, options, says):
    with pytest.raises(UserError) as caught:
        opened(**options)
    assert says in told(caught)


def test_reading_a_batch_takes_well_under_a_millisecond(tmp_path):
    cache = TeacherCache(tmp_path)
    cache.open({}, samples=12_000, views=4, outputs=10)
    every = torch.arange(48_000)
    cache.write(every, torch.randn(48_000, 10))
    times = []
    for turn in range(50):
        keys = torch.randperm(48_000, generator=torch.Generator().manual_seed(turn))[:128]
        begin = time.process_time()  # what runs beside does not count
        _, known = cache.read(keys)
        times.append(time.process_time() - begin)
        assert known.all()
    assert min(times) < 1e-3


def test_missing_names_the_keys_of_a_view_that_nobody_has_written(tmp_path):
    cache = TeacherCache(tmp_path)
    cache.open({"teacher": "a"}, samples=4, views=2, outputs=3)
    cache.write(torch.tensor([1, 2, 5]), torch.randn(3, 3))
    cache.refresh()
    assert cache.missing(0).tolist() == [0, 3]
    assert cache.missing(1).tolist() == [4, 6, 7]
    with pytest.raises(UserError, match="key"):
        cache.missing(2)

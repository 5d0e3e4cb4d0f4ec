import hashlib
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from picture_files import noise, pair_folder, truncate, write

from lighten.data import decoded
from lighten.data.decode import Frame, decode, open_image
from lighten.data.decoded import Sources, read_all

FRAME = Frame((8, 8), "crop", 3)


@pytest.fixture
def files(tmp_path):
    return tuple(str(write(tmp_path / "in" / f"{number}.png", noise(seed=number))) for number in range(9))


def expected(files):
    return np.stack([decode(open_image(file), FRAME) for file in files])


@pytest.mark.parametrize("cache", ["memory", "disk", "none", "auto"])
def test_pixels_and_facts_are_those_of_each_file(files, tmp_path, cache):
    facts, store = read_all(Sources(files, FRAME), cache, tmp_path / "cache")
    pixels = expected(files)
    rows = np.array([3, 0, 3])
    assert np.array_equal(store.get(rows)["pixels"], pixels[rows])
    assert facts.digests == [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    wide = pixels.astype(np.int64).reshape(9, -1, 3)
    assert np.array_equal(facts.sums, np.stack([wide.sum(1), (wide**2).sum(1)], 2))
    assert facts.errors == {}
    kept = [path.name for path in (tmp_path / "cache").rglob("*.npy")]
    assert kept == (["pixels.npy"] if cache == "disk" else [])


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_what_was_read_once_is_not_decoded_again(files, tmp_path, cache, monkeypatch):
    first, _ = read_all(Sources(files, FRAME), cache, tmp_path / "cache")
    monkeypatch.setattr(decoded, "_pass", None)
    again, store = read_all(Sources(files, FRAME), cache, tmp_path / "cache")
    assert again.digests == first.digests
    assert np.array_equal(again.sums, first.sums)
    assert np.array_equal(store.get(np.arange(9))["pixels"], expected(files))


def test_another_file_size_or_frame_is_read_anew(files, tmp_path):
    read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
    write(files[2], noise(20, 20, seed=77))
    _, store = read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
    assert np.array_equal(store.get(np.arange(9))["pixels"], expected(files))
    _, store = read_all(Sources(files, Frame((8, 8), "pad", 3)), "disk", tmp_path / "cache")
    assert not np.array_equal(store.get(np.arange(9))["pixels"], expected(files))


def test_few_images_stay_in_memory_and_many_go_to_the_disk(files, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "MAX_IN_MEMORY", 100)
    _, store = read_all(Sources(files, FRAME), "auto", tmp_path / "cache")
    assert store.folder is not None
    monkeypatch.setattr(decoded, "_has_room", lambda folder, wanted: False)
    assert read_all(Sources(files, Frame((9, 9), "crop", 3)), "auto", tmp_path / "cache")[1].folder is None


def test_a_store_on_the_disk_goes_to_other_processes_without_its_pixels(files, tmp_path):
    _, store = read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
    store.get(np.arange(2))
    sent = pickle.dumps(store)
    assert len(sent) < 3000
    assert np.array_equal(pickle.loads(sent).get(np.arange(9))["pixels"], expected(files))


def test_a_damaged_cache_is_made_again_with_a_warning(files, tmp_path):
    read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
    for name in ("facts.npz", "pixels.npy"):
        truncate(next((tmp_path / "cache").rglob(name)))
        with pytest.warns(UserWarning, match="image cache .* is damaged"):
            _, store = read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
        assert np.array_equal(store.get(np.arange(9))["pixels"], expected(files))


def test_a_cache_that_cannot_be_written_warns_and_decodes_each_time(files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="image cache .* cannot be written .* set LIGHTEN_CACHE"):
        facts, store = read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
    assert np.array_equal(store.get(np.arange(9))["pixels"], expected(files))
    assert len(facts.digests) == 9


def test_what_another_process_has_finished_meanwhile_is_taken(files, tmp_path, monkeypatch):
    first = decoded._pass

    def slower(*arguments):
        monkeypatch.setattr(decoded, "_pass", first)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)  # temporary names have it
            read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
        return first(*arguments)

    monkeypatch.setattr(decoded, "_pass", slower)
    facts, store = read_all(Sources(files, FRAME), "disk", tmp_path / "cache")
    assert np.array_equal(store.get(np.arange(9))["pixels"], expected(files))
    assert len(facts.digests) == 9
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [store.folder.name]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_what_cannot_be_read_is_noted_also_the_second_time(files, tmp_path, cache):
    truncate(tmp_path / "in" / "4.png")
    (tmp_path / "in" / "6.png").write_bytes(b"no image")
    for _ in range(2):
        facts, _ = read_all(Sources(files, FRAME), cache, tmp_path / "cache")
        assert sorted(facts.errors) == [4, 6]
        assert "truncated" in facts.errors[4]
        assert facts.errors[6] == "it is no image that Pillow reads"


def pairs(root, frame):
    names = [path.stem for path in sorted((root / "images").iterdir())]
    second = "masks" if frame.channels == 0 else "targets"
    return Sources(
        tuple(str(root / "images" / f"{name}.jpg") for name in names), FRAME,
        tuple(str(root / second / f"{name}.png") for name in names), frame,
    )  # fmt: skip


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_masks_and_target_pictures(tmp_path, cache):
    for second, channels in (("masks", 0), ("targets", 3)):
        root = pair_folder(tmp_path / second, 3, second)
        sources = pairs(root, Frame((8, 8), "crop", channels))
        facts, store = read_all(sources, cache, tmp_path / "cache")
        found = store.get(np.arange(3))["seconds"]
        if channels:
            wanted = np.stack([decode(open_image(file), FRAME) for file in sources.seconds])
            assert np.array_equal(facts.second_sums[..., 0], wanted.astype(int).sum((1, 2)))
        else:
            wanted = np.repeat(np.array([0, 1, 2, 255], np.uint8).repeat(2)[None, :, None], 3, 0).repeat(8, 2)
            assert [np.flatnonzero(row).tolist() for row in facts.values] == [[0, 1, 2, 255]] * 3
        assert np.array_equal(found, wanted)


def test_a_mask_of_another_size_is_wrong_and_a_damaged_one_cannot_be_read(tmp_path):
    root = pair_folder(tmp_path, 3)
    write(root / "masks" / "1.png", noise(32, 31, 1))
    truncate(root / "masks" / "2.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts, _ = read_all(pairs(root, Frame((8, 8), "crop", 0)), "memory", tmp_path / "cache")
    assert list(facts.wrong) == [1]
    assert facts.wrong[1].endswith("masks/1.png: 31×32 pixels for an image of 32×32, expected the same; fix it")
    assert list(facts.errors) == [2]
    assert "masks/2.png" in facts.errors[2]

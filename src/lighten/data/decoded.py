"""All images of a data set, read once: decoded, summed up, and kept in memory, on the disk or not at all."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lighten.data.checks import first_line
from lighten.data.decode import Frame, decode, decode_mask, open_image, turned_size
from lighten.errors import UserError
from lighten.utils.files import write_whole
from lighten.utils.long_work import long_work
from lighten.utils.machine import cores

CACHES = ("auto", "memory", "disk", "none")
MAX_IN_MEMORY = 64 << 20
"""Bytes up to which ``auto`` keeps decoded images in memory."""

_VERSION = 2  # of what decoding gives; another one makes the cache again
_AT_ONCE = 64


@dataclass(frozen=True)
class Sources:
    """What is to be read: images, and for each a mask or a target picture, or none.

    Attributes:
        files: of the images.
        frame: that they are brought to.
        seconds: files of masks or target pictures.
        second_frame: theirs; its channels are 0 for masks.
    """

    files: tuple[str, ...]
    frame: Frame
    seconds: tuple[str, ...] = ()
    second_frame: Frame | None = None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the decoded images and of what belongs to them, uint8."""
        shapes: dict[str, tuple[int, ...]] = {"pixels": (len(self.files), *self.frame.size, self.frame.channels)}
        if self.second_frame is not None:
            channels = (self.second_frame.channels,) if self.second_frame.channels else ()
            shapes["seconds"] = (len(self.files), *self.second_frame.size, *channels)
        return shapes

    @property
    def bytes(self) -> int:
        """That all decoded images take."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def key(self) -> str:
        """Return a digest of files (path, size, time of change) and frames."""
        stats = [os.stat(path) for path in (*self.files, *self.seconds)]
        files = [
            [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
            for path, stat in zip((*self.files, *self.seconds), stats, strict=True)
        ]
        frames = [asdict(self.frame), asdict(self.second_frame) if self.second_frame else None]
        return hashlib.sha256(json.dumps([_VERSION, files, frames]).encode()).hexdigest()

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Return one image, decoded, and what belongs to it."""
        found = {"pixels": decode(open_image(self.files[index]), self.frame)}
        if self.second_frame is not None:
            found["seconds"] = _second(open_image(self.seconds[index]), self.second_frame)[0]
        return found


@dataclass(frozen=True)
class Facts:
    """What is known of each image after it was decoded once.

    Attributes:
        digests: SHA-256 (hex) of each file, of the mask or target picture included.
        sums: int64 (N, C, 2): sums of values and of their squares.
        second_sums: likewise of target pictures.
        values: bool (N, 256): which values a mask has.
        errors: why an image cannot be read, by its index.
        wrong: what is wrong with one that can be read, by its index.
        sizes: int64 (N, 2): height and width of each image before it was brought to a frame; 0 where it cannot be read.
    """

    digests: list[str]
    sums: np.ndarray
    second_sums: np.ndarray
    values: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    wrong: dict[int, str] = field(default_factory=dict)
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))


class Store:
    """Decoded images: arrays in memory, files on the disk that each process opens for itself, or none.

    Args:
        sources: from which images are decoded where nothing is kept.
        arrays: by name, in memory.
        folder: of the files, on the disk.
    """

    def __init__(
        self, sources: Sources, arrays: dict[str, np.ndarray] | None = None, folder: Path | None = None
    ) -> None:
        self.sources = sources
        self.folder = folder
        self._arrays = arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None if self.folder is not None else self._arrays}

    def get(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return decoded images ``pixels`` uint8 (N, H, W, C), and ``seconds`` where there are."""
        if self.folder is not None and self._arrays is None:
            self._arrays = {name: np.load(_file(self.folder, name), mmap_mode="r") for name in self.sources.shapes}
        if self._arrays is not None:
            return {name: np.asarray(array[rows]) for name, array in self._arrays.items()}
        read = [self.sources.read(row) for row in rows.tolist()]
        return {name: np.stack([one[name] for one in read]) for name in self.sources.shapes}


def read_all(sources: Sources, cache: str, cache_folder: Path) -> tuple[Facts, Store]:
    """Decode all images once, in threads, or take up what an earlier run has kept.

    Args:
        sources: what to read.
        cache: one of ``CACHES``: where decoded images are kept. ``auto``: in memory where they are few, else on the
            disk where there is room.
        cache_folder: on the disk, also for the facts where images are not kept.
    """
    folder = cache_folder / sources.key()[:32]
    if cache == "auto":
        cache = "memory" if sources.bytes <= MAX_IN_MEMORY else "disk" if _has_room(folder, sources.bytes) else "none"
    if cache == "memory":
        arrays = {name: np.zeros(shape, np.uint8) for name, shape in sources.shapes.items()}
        return _pass(sources, _filler(arrays)), Store(sources, arrays)
    keep = cache == "disk"
    stale = folder.exists()
    known = _known(folder, sources, keep=keep)
    if known is None:
        try:
            if stale:  # what another process has finished since then stays
                shutil.rmtree(folder)
            known = _write(sources, folder, keep=keep)
        except OSError as error:
            if (known := _known(folder, sources, keep=keep)) is not None:  # another process was quicker
                return known, Store(sources, folder=folder if keep else None)
            warnings.warn(
                f"image cache {cache_folder} cannot be written ({error.strerror or error}), so each run decodes again; "
                "set LIGHTEN_CACHE to a folder that can be",
                stacklevel=2,
            )
            return _pass(sources, None), Store(sources)
    return known, Store(sources, folder=folder if keep else None)


def _pass(sources: Sources, keep: Callable[[int, dict[str, np.ndarray]], None] | None) -> Facts:
    count = len(sources.files)
    second = sources.second_frame.channels if sources.second_frame is not None else 0
    facts = Facts(
        [""] * count, np.zeros((count, sources.frame.channels, 2), np.int64), np.zeros((count, second, 2), np.int64),
        np.zeros((count, 256), bool), sizes=np.zeros((count, 2), np.int64),
    )  # fmt: skip

    def one(index: int) -> None:
        try:
            found = _read_and_sum(sources, index, facts)
        except UserError as error:
            facts.wrong[index] = str(error)
            return
        except Exception as error:
            facts.errors[index] = first_line(error)
            return
        if keep is not None:
            keep(index, found)

    with long_work("images") as report, ThreadPoolExecutor(cores()) as pool:
        for start in range(0, count, _AT_ONCE):
            list(pool.map(one, range(start, min(start + _AT_ONCE, count))))
            report(f"decodes {count}", min(1.0, (start + _AT_ONCE) / count))
    return facts


def _read_and_sum(sources: Sources, index: int, facts: Facts) -> dict[str, np.ndarray]:
    content = Path(sources.files[index]).read_bytes()
    digest = hashlib.sha256(content)
    facts.digests[index] = digest.hexdigest()
    image = open_image(content)
    facts.sizes[index] = size = turned_size(image)
    found = {"pixels": decode(image, sources.frame)}
    facts.sums[index] = _sums(found["pixels"])
    if sources.second_frame is not None:
        name = sources.seconds[index]
        content = Path(name).read_bytes()
        digest.update(hashlib.sha256(content).digest())
        facts.digests[index] = digest.hexdigest()
        try:
            second = open_image(content)
            if turned_size(second) != size:
                raise UserError(
                    f"{_sides(turned_size(second))} pixels for an image of {_sides(size)}, expected the same; fix it"
                )
            found["seconds"], seen = _second(second, sources.second_frame)
        except Exception as error:
            kind = UserError if isinstance(error, UserError) else ValueError
            raise kind(f"{name}: {first_line(error)}") from error
        if sources.second_frame.channels:
            facts.second_sums[index] = _sums(found["seconds"])
        else:
            facts.values[index] = seen
    return found


def _second(image: Any, frame: Frame) -> tuple[np.ndarray, np.ndarray | None]:
    return (decode(image, frame), None) if frame.channels else decode_mask(image, frame)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"


def _sums(pixels: np.ndarray) -> np.ndarray:
    """Return whole numbers, (C, 2), which come to the same in any order: float64 holds them exactly, and is quick."""
    wide = np.ascontiguousarray(pixels.reshape(-1, pixels.shape[-1]).T).astype(np.float64)
    return np.stack([wide.sum(1), np.einsum("cn,cn->c", wide, wide)], 1).astype(np.int64)


def _filler(arrays: dict[str, np.ndarray]) -> Callable[[int, dict[str, np.ndarray]], None]:
    def fill(index: int, found: dict[str, np.ndarray]) -> None:
        for name, array in found.items():
            arrays[name][index] = array

    return fill


def _write(sources: Sources, folder: Path, *, keep: bool) -> Facts:
    made: list[Facts] = []

    def save(target: Path) -> None:
        target.mkdir()
        arrays: dict[str, np.ndarray] = {}
        if keep:
            for name, shape in sources.shapes.items():
                arrays[name] = np.lib.format.open_memmap(_file(target, name), "w+", np.uint8, shape)
        made.append(_pass(sources, _filler(arrays) if keep else None))
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]
        _save_facts(target, made[0])

    write_whole(folder, save)
    return made[0]


def _save_facts(folder: Path, facts: Facts) -> None:
    told = {"digests": facts.digests, "errors": list(facts.errors.items()), "wrong": list(facts.wrong.items())}
    np.savez(
        folder / "facts.npz",
        sums=facts.sums,
        second_sums=facts.second_sums,
        values=facts.values,
        sizes=facts.sizes,
        text=np.array(json.dumps(told)),
    )


def _known(folder: Path, sources: Sources, *, keep: bool) -> Facts | None:
    if not (folder / "facts.npz").exists() or (keep and not _file(folder, "pixels").exists()):
        return None
    try:
        with (folder / "facts.npz").open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            text = json.loads(str(arrays["text"]))
            facts = Facts(
                text["digests"], arrays["sums"], arrays["second_sums"], arrays["values"], dict(text["errors"]),
                dict(text["wrong"]), arrays["sizes"],
            )  # fmt: skip
        for name, shape in sources.shapes.items() if keep else ():
            if np.load(_file(folder, name), mmap_mode="r").shape != shape:
                raise ValueError(f"{name} has another shape")
        return facts
    except Exception as error:
        warnings.warn(f"image cache {folder} is damaged ({first_line(error)}); it is made again", stacklevel=3)
        return None


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _has_room(folder: Path, wanted: int) -> bool:
    place = next(path for path in folder.parents if path.exists())
    return shutil.disk_usage(place).free > 2 * wanted

"""TeacherCache: outputs of a teacher on disk, computed once for each view of each sample.

A folder holds ``meta.json``, which says whose outputs these are, and ``part-<rank>.bin``, one for each process that
has written (:class:`CachePart`). A slot of a part holds the outputs of a key and a CRC-32. One whose CRC does not fit
its key and its bytes counts as not there: never written, torn by a kill, or damaged since. So nothing has to be
repaired, only computed again.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.distillation.cache_part import CachePart
from lighten.distillation.settings import DistilSettings, check_cache
from lighten.distillation.slots import Slots
from lighten.errors import UserError
from lighten.utils.checks import check_whole
from lighten.utils.files import write_whole

SCHEMA = 1
_BLOCK = 4096  # bytes that a file system hands out at once
_SCAN = 1 << 16  # slots looked at together


class TeacherCache:
    """A teacher's outputs for each view of each training sample, in a folder that remains after the fit.

    A key is ``view * samples + sample``. Every process writes its own part and reads those of all others, also
    of an earlier run with more or fewer processes. A kill at any moment loses at most the slots being written.

    Args:
        folder: created if it does not exist.
        dtype: to store; ``float16`` halves the size and keeps about three digits.
        top_k: keep that many classes per sample (:class:`Slots` has the formula); for a softmax over many.

    Raises:
        UserError: for another ``dtype``, or ``top_k`` below 1.

    Example:
        >>> import tempfile
        >>> cache = TeacherCache(tempfile.mkdtemp())
        >>> cache.open({"teacher": "2b07208a"}, samples=100, views=2, outputs=3)
        >>> keys = torch.tensor([7, 107])
        >>> stored = cache.write(keys, torch.randn(2, 3))
        >>> values, known = cache.read(keys)
        >>> known.tolist(), bool((values == stored).all()), cache.filled
        ([True, True], True, 0.01)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str = DistilSettings.cache_dtype,
        top_k: int | None = DistilSettings.cache_top_k,
    ) -> None:
        check_cache(dtype, top_k, "teacher cache: ")
        self.folder = Path(folder)
        self.dtype = dtype
        self.top_k = top_k
        self.samples = self.views = self.outputs = 0
        self.world = 1
        self._rows: list[np.ndarray] = []

    def open(
        self,
        identity: Mapping[str, str],
        *,
        samples: int,
        views: int | None,
        outputs: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Make the folder ready, or take up what is in it.

        A ``meta.json`` that cannot be read and a part that is cut short or of other contents are replaced, with a
        warning.

        Args:
            identity: name -> fingerprint of all that the outputs depend on: teacher, data, the seed of augmentation,
                tokenizer, precision …
            samples: in the training set.
            views: of each sample.
            outputs: numbers per sample.
            rank: of this process.
            world: number of processes.

        Raises:
            UserError: if the folder holds outputs of another identity, of other numbers or in another form; if it
                cannot be written; if the disk has too little room; if ``top_k`` is not below ``outputs``.
        """
        if views is None:
            raise UserError(
                "teacher cache: views=None, another view of each sample in every epoch, is never read again; "
                "set views of the data, or switch augmentation off"
            )
        for name, count in (("samples", samples), ("views", views), ("outputs", outputs), ("world", world)):
            check_whole(f"teacher cache: {name}", count, 1)
        if self.top_k is not None and self.top_k >= outputs:
            raise UserError(f"teacher cache: top_k={self.top_k}, expected below the {outputs} outputs; leave it out")
        self.samples, self.views, self.outputs, self.world = samples, views, outputs, world
        self._rank = rank
        self._slots = Slots(outputs, self.dtype, self.top_k)
        self._meta = {
            "schema": SCHEMA,
            "identity": {str(name): str(value) for name, value in identity.items()},
            "samples": samples, "views": views, "outputs": outputs, "dtype": self.dtype, "top_k": self.top_k,
        }  # fmt: skip
        self._digest = hashlib.sha256(json.dumps(self._meta, sort_keys=True).encode()).hexdigest().encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_meta()
            self._check_disk()
            self._clear_parts()
            self.refresh()
        except OSError as error:
            raise self._failed(error) from error

    @property
    def size(self) -> int:
        """Bytes on the disk when every key is known, at most.

        A disk is handed out in blocks. Where several small slots share one, each process that writes one of them
        takes a block of its own.
        """
        slot = self._slots.fields.itemsize
        share = -(-self._keys // self.world) * (-(-slot // _BLOCK) + 1) * _BLOCK
        return self.world * min(self._own.size, share)

    @property
    def filled(self) -> float:
        """The share of keys that are known, in [0, 1]; reads and checks every slot."""
        spans = (np.arange(at, min(at + _SCAN, self._keys)) for at in range(0, self._keys, _SCAN))
        return sum(int(self._look(keys)[1].sum()) for keys in spans) / self._keys

    def announce(self) -> str:
        """Return a line that says how large the cache will be."""
        kept = "" if self.top_k is None else f" (the {self.top_k} largest)"
        return (
            f"teacher cache: {self.samples:,} samples x {self.views} views x {self.outputs:,} outputs{kept} "
            f"in {self.dtype}: {_bytes(self.size)} in {self.folder}"
        )

    def read(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs, float32 (batch, outputs), and which are known, bool (batch,), on the device of ``keys``.

        Args:
            keys: int64 (batch,).

        Raises:
            UserError: if a key is out of range.
        """
        rows, known = self._look(self._checked(keys))
        return self._slots.decode(rows).to(keys.device), torch.from_numpy(known).to(keys.device)

    def write(self, keys: Tensor, values: Tensor) -> Tensor:
        """Store outputs and return them as they will be read, float32 (batch, outputs), on the device of ``values``.

        Args:
            keys: int64 (batch,).
            values: (batch, outputs) of any float type.

        Raises:
            UserError: if a key is out of range, the shape is another, a number is not finite or does not fit the
                dtype (the sample is named), or the disk is full.
        """
        chosen = self._checked(keys)
        if tuple(values.shape) != (len(chosen), self.outputs):
            raise UserError(
                f"teacher cache: outputs of shape {tuple(values.shape)} for sample {self._sample(chosen[:1])} and on, "
                f"expected {(len(chosen), self.outputs)}; give the keys of this very batch"
            )
        given = values.detach().float().cpu()
        self._check_finite(given, chosen, "is not finite; look at this sample and at the teacher's precision")
        rows = self._slots.encode(given, chosen)
        stored = self._slots.decode(rows)
        self._check_finite(stored, chosen, f"does not fit {self.dtype}; store float32")
        try:
            self._own.write(chosen, rows)
        except OSError as error:
            raise self._failed(error) from error
        return stored.to(values.device)

    def missing(self, view: int) -> Tensor:
        """Return the keys of a view that are not known, int64 (keys,), ascending.

        Raises:
            UserError: if there is no such view.
        """
        keys = self._checked(torch.arange(self.samples) + view * self.samples)
        return torch.from_numpy(keys[~self._look(keys)[1]])

    def refresh(self) -> None:
        """Flush what this process has written, and look for parts of others; run it between epochs.

        Raises:
            UserError: if the disk fails.
        """
        try:
            self._own.flush()
            others = [part for rank, part in sorted(self._found().items()) if rank != self._rank]
            self._rows = [part.rows() for part in (self._own, *others) if not part.fault()]
        except OSError as error:
            raise self._failed(error) from error

    @property
    def _keys(self) -> int:
        return self.samples * self.views

    @property
    def _own(self) -> CachePart:
        return self._part(self._rank)

    def _part(self, rank: int) -> CachePart:
        return CachePart(self.folder / f"part-{rank}.bin", self._digest, self._slots, self._keys)

    def _found(self) -> dict[int, CachePart]:
        """Return the parts that are in the folder, by rank."""
        names = {path.name: path.stem.removeprefix("part-") for path in self.folder.glob("part-*.bin")}
        parts = {int(rank): self._part(int(rank)) for rank in names.values() if rank.isdecimal()}
        return {rank: part for rank, part in parts.items() if part.path.name in names}

    def _look(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return slots (batch,) and which are known (batch,); this process's own part goes before those of others."""
        rows, known = np.zeros(len(keys), self._slots.fields), np.zeros(len(keys), bool)
        for part in self._rows:
            if known.all():
                break
            missing = np.flatnonzero(~known)
            found = part[keys[missing]]
            written = found["crc"] != 0
            missing, found = missing[written], found[written]
            sound = self._slots.sound(found, keys[missing])
            rows[missing[sound]] = found[sound]
            known[missing[sound]] = True
        return rows, known

    def _check_meta(self) -> None:
        path = self.folder / "meta.json"
        problem = ""
        try:
            found = json.loads(path.read_bytes())
            self._compare(_flat(found), _flat(self._meta))
            return
        except FileNotFoundError:
            pass
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = type(error).__name__
        if self._rank == 0:
            if problem:
                self._warn(f"{path} is unreadable ({problem}): it is made again")
            content = json.dumps(self._meta, indent=1).encode()
            write_whole(path, lambda temporary: temporary.write_bytes(content))

    def _compare(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        names = [n for n in [*expected, *found] if found.get(n) != expected.get(n)]
        if names:
            names = list(dict.fromkeys(names))
            there, here = (", ".join(f"{n} {_short(of.get(n))}" for n in names) for of in (found, expected))
            raise UserError(
                f"teacher cache {self.folder} holds outputs for {there}; this run has {here}; "
                "choose another folder, or remove this one to fill it again"
            )

    def _check_disk(self) -> None:
        paths = [part.path for part in self._found().values()]
        taken = sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in paths)
        needed, free = self.size - taken, shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"teacher cache {self.folder} needs {_bytes(needed)} more when full, the disk has {_bytes(free)} free; "
                "make room, choose another folder, or store float16 or top_k"
            )

    def _clear_parts(self) -> None:
        """Remove damaged parts that nobody else will, and make this process's own."""
        for rank, part in self._found().items():
            ours = rank == self._rank or (self._rank == 0 and rank >= self.world)
            if ours and (fault := part.fault()):
                self._warn(f"{part.path} {fault}: it is removed, and its outputs are computed again")
                part.path.unlink(missing_ok=True)
        if not self._own.path.exists():
            self._own.create()

    def _checked(self, keys: Tensor) -> np.ndarray:
        if keys.ndim != 1 or keys.dtype != torch.int64:
            raise UserError(f"teacher cache: keys are {keys.dtype} {tuple(keys.shape)}, expected int64 (batch,)")
        chosen = keys.cpu().numpy()
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < self._keys:
            wrong = chosen[(chosen < 0) | (chosen >= self._keys)]
            raise UserError(
                f"teacher cache: key {wrong[0]} of sample {self._sample(wrong)} is out of range, expected 0 to "
                f"{self._keys - 1} for {self.samples} samples x {self.views} views; open it with those of the data"
            )
        return chosen

    def _check_finite(self, values: Tensor, keys: np.ndarray, says: str) -> None:
        finite = values.isfinite()
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            view, sample = divmod(int(keys[row]), self.samples)
            raise UserError(
                f"teacher cache: output {column} of sample {sample} (view {view}) is {values[row, column].item()}, "
                f"which {says}"
            )

    def _sample(self, keys: np.ndarray) -> int | None:
        return int(keys[0]) % self.samples if len(keys) else None

    def _failed(self, error: OSError) -> UserError:
        return UserError(
            f"teacher cache {self.folder} cannot be used ({error.strerror or error}); "
            "make room or choose another folder, or leave the cache out"
        )

    @staticmethod
    def _warn(line: str) -> None:
        warnings.warn(f"teacher cache: {line}", stacklevel=4)


def _flat(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the meta data with those of ``identity`` among them, which are what a person looks for."""
    return {**meta["identity"], **{name: value for name, value in meta.items() if name != "identity"}}


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if len(text) > 16 else text


def _bytes(count: int) -> str:
    """Return ``"1.2 MB"`` for 1_152_064 bytes."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"

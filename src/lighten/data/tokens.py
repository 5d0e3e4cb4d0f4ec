"""Texts as token ids: tokenized once, kept flat in memory and in a cache on disk."""

import hashlib
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lighten.data.checks import first_line
from lighten.errors import UserError
from lighten.utils.files import replace_file

_AT_ONCE = 50_000
"""Texts that the tokenizer gets in one call; bounds the memory of its Python lists."""

_DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Tokens:
    """Sample i has the ids ``ids[offsets[i] : offsets[i + 1]]``, special tokens included.

    Attributes:
        ids: int32 (T,), of all samples one after the other.
        offsets: int64 (N + 1,).
        types: int8 (T,), 0 in the first text of a pair and 1 in the second; ``None`` without pairs.
    """

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, int64 (N,)."""
        return np.diff(self.offsets)


class Tokenizer:
    """A fast tokenizer of ``transformers`` and what identifies it.

    Args:
        name: a folder, a name on the hub, or ``minilm``.

    Raises:
        UserError: if there is none, or it is no fast one, or it cannot pad.
    """

    def __init__(self, name: str) -> None:
        self.backend = _load(name)
        vocabulary = json.loads(self.backend.backend_tokenizer.to_str())
        for state in ("truncation", "padding"):  # set by calls, no part of what it is
            vocabulary.pop(state, None)
        special = [self.backend.pad_token_id, self.backend.mask_token_id, self.gives_types]
        self.digest = hashlib.sha256(json.dumps([vocabulary, special], sort_keys=True).encode()).hexdigest()

    @property
    def gives_types(self) -> bool:
        """Whether the model it belongs to tells the two texts of a pair apart by ``token_type_ids``."""
        return "token_type_ids" in self.backend.model_input_names

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Tokens:
        """Return the tokens of texts, or of pairs of texts, each cut to ``max_length``, special tokens included."""
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        lengths = [np.zeros(1, np.int64)]
        wanted = pairs is not None and self.gives_types
        for start in range(0, len(texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            found = self.backend(
                list(texts[part]),
                list(pairs[part]) if pairs is not None else None,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=wanted,
            )
            lengths.append(np.array([len(row) for row in found["input_ids"]], np.int64))
            ids.append(np.concatenate([np.array(row, np.int32) for row in found["input_ids"]]))
            if wanted:
                types.append(np.concatenate([np.array(row, np.int8) for row in found["token_type_ids"]]))
        return Tokens(
            np.concatenate([np.zeros(0, np.int32), *ids]),
            np.cumsum(np.concatenate(lengths)),
            np.concatenate(types) if types else None,
        )

    def check_length(self, max_length: int) -> None:
        """Check ``max_length`` against what the tokenizer's model can take.

        Raises:
            UserError: if it is longer.
        """
        longest = self.backend.model_max_length
        if max_length > longest:
            raise UserError(
                f"max_length={max_length}, but this tokenizer's model takes {longest} tokens at most; "
                f"set max_length to 8 to {longest}"
            )


def cached_tokens(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, folder: Path | None = None
) -> Tokens:
    """Return the tokens of texts, from the cache where the same texts went through the same tokenizer before.

    A damaged file is replaced, with one warning; a folder that cannot be written gives one too.

    Args:
        tokenizer: used where the cache has nothing.
        texts: first or only ones.
        pairs: second ones.
        max_length: longer ones are cut.
        folder: of the cache; see :func:`cache_folder`.
    """
    parts = [tokenizer.digest, str(max_length), digest_texts(texts), digest_texts(pairs) if pairs is not None else ""]
    file = (folder or cache_folder()) / f"{hashlib.sha256('|'.join(parts).encode()).hexdigest()}.npz"
    if file.exists():
        try:
            return _read(file, len(texts))
        except _DAMAGE as error:
            warnings.warn(f"token cache {file} is damaged ({first_line(error)}); it is made again", stacklevel=2)
    tokens = tokenizer(texts, pairs, max_length)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda target: _write(target, tokens))
    except OSError as error:
        warnings.warn(
            f"token cache {file.parent} cannot be written ({error.strerror}), so each run tokenizes again; "
            "set LIGHTEN_CACHE to a folder that can be",
            stacklevel=2,
        )
    return tokens


def cache_folder() -> Path:
    """Return ``tokens`` in the folder that the environment's ``LIGHTEN_CACHE`` names, else in ``~/.cache/lighten``."""
    return Path(os.environ.get("LIGHTEN_CACHE") or Path.home() / ".cache" / "lighten").expanduser() / "tokens"


def digest_texts(texts: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    from lighten.models.pretrained import resolve

    path = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"tokenizer={name!r} is not found or cannot be read ({first_line(error)}); expected minilm, "
            "a folder with tokenizer.json, or a name on the hub and a network"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer={name!r} is a slow one, expected one with a tokenizer.json; save a fast one")
    if tokenizer.pad_token_id is None:
        raise UserError(f"tokenizer={name!r} has no padding token, which batches need; choose another, or add one")
    return tokenizer


def _write(file: Any, tokens: Tokens) -> None:
    arrays = {"ids": tokens.ids, "offsets": tokens.offsets, "types": tokens.types}
    np.savez(file, allow_pickle=False, **{key: value for key, value in arrays.items() if value is not None})


def _read(file: Path, samples: int) -> Tokens:
    with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:  # each array has a checksum
        tokens = Tokens(arrays["ids"], arrays["offsets"], arrays.get("types"))
    if tokens.ids.dtype != np.int32 or tokens.offsets.dtype != np.int64 or tokens.offsets.shape != (samples + 1,):
        raise ValueError("types or sizes are others")
    ends = int(tokens.offsets[0]), int(tokens.offsets[-1])
    if ends != (0, tokens.ids.size) or (np.diff(tokens.offsets) < 0).any() or (tokens.ids < 0).any():
        raise ValueError("offsets and tokens do not agree")
    if tokens.types is not None and (tokens.types.dtype != np.int8 or tokens.types.shape != tokens.ids.shape):
        raise ValueError("types and tokens do not agree")
    return tokens

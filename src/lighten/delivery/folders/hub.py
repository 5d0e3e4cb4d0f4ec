"""Upload of model folders to the Hugging Face Hub."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lighten.delivery.folders.model import COMPRESSION, CONFIG, WEIGHTS
from lighten.delivery.folders.own import CLASS
from lighten.delivery.folders.run import read_json
from lighten.errors import UserError, one_line, shown
from lighten.utils.targets import exported_files

CARD = "README.md"
OWN = (CONFIG, WEIGHTS, COMPRESSION, CARD)
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "preprocessor_config.json",
)  # fmt: skip
"""What ``save_pretrained`` of tokenizers and image processors writes."""
_NAMES = {*OWN, *TOKENIZER, *exported_files("model")}
PLACEHOLDER = "NAME/REPO"
"""Stands in the card for where it is uploaded to."""

_BARE = """\
---
library_name: lighten
tags:
- lighten
- model-compression
---

# {name}

A compressed model. `pip install lighten`, then:

```python
from huggingface_hub import snapshot_download
from lighten import load

model = load(snapshot_download("NAME/REPO"){instance})
```

Nobody has measured it yet: `lighten.measure` does.
"""


def push_to_hub(
    folder: str | os.PathLike[str], repo_id: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a model folder with its card to the Hugging Face Hub, in one commit, and return its address.

    Only the files of a model folder are uploaded: config, weights, the record of compression, card, tokenizer; and
    exported files beside it, as ``model.onnx`` and so on. The commit deletes those that are on the hub but no longer in
    the folder. If there is no card, one is added that says how to load the model.
    ``lighten.load(huggingface_hub.snapshot_download(repo_id))`` loads it.

    Args:
        folder: as ``save`` wrote it, such as ``runs/<recipe>/<id>/student``.
        repo_id: ``"NAME/REPO"``, or ``"REPO"`` of your own; created if it does not exist.
        private: whether a new repository is private.
        token: with write access; ``None`` takes ``$HF_TOKEN``, or that of ``hf auth login``.

    Raises:
        UserError: if ``huggingface_hub`` is not installed, the folder is not a model folder or links to files
            elsewhere, the name is not valid, or the hub cannot be reached or refuses.
    """
    hub = _package(repo_id)
    files = files_of(Path(folder))
    with _as_user_error(repo_id):
        api = hub.HfApi(token=token)
        where = api.create_repo(repo_id, private=private, exist_ok=True)
        there = set(api.list_repo_files(where.repo_id))
        operations = [hub.CommitOperationAdd(name, _content(path, where.repo_id)) for name, path in files.items()]
        if CARD not in {*files, *there}:
            own = read_json(files[CONFIG], made_by="lighten.save").get(CLASS)
            instance = "" if own is None else f", model={str(own).rpartition('.')[2]}(…)"
            card = _BARE.format(name=where.repo_id.rpartition("/")[2], instance=instance)
            card = card.replace(PLACEHOLDER, where.repo_id)
            operations.append(hub.CommitOperationAdd(CARD, card.encode()))
        gone = sorted((there & _NAMES) - {*files, CARD})
        operations += [hub.CommitOperationDelete(name) for name in gone]
        api.create_commit(where.repo_id, operations, commit_message="Upload a model of lighten")
    return str(where)


def files_of(folder: Path) -> dict[str, Path]:
    """Return what of a folder belongs on the hub: names there to paths here.

    Raises:
        UserError: if it is no model folder, or one of these files is a link to somewhere else.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        runs = f"; did you mean {folder / 'student'}?" if (folder / "student" / CONFIG).is_file() else ""
        raise UserError(
            f"{folder}: no model folder, {CONFIG} and {WEIGHTS} are not both in it; expected one as lighten.save or "
            f"`lighten shrink RUN` writes it{runs}"
        )
    whole = folder.resolve()
    found = {name: whole / name for name in (*OWN, *TOKENIZER)}
    beside = zip(exported_files("model"), exported_files(whole.name), strict=True)
    found |= {there: whole.with_name(here) for there, here in beside}
    found = {name: path for name, path in found.items() if path.is_file()}
    for path in found.values():
        if path.resolve() != path:
            raise UserError(f"{path}: is a link to another file, which is not uploaded; put the file itself there")
    return found


def _content(path: Path, repo_id: str) -> bytes | str:
    """Return a path for the hub to read; of a card, its text with the address that it gets."""
    if path.name != CARD:
        return str(path)
    return path.read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id).encode()


def _package(repo_id: str) -> Any:
    """Return ``huggingface_hub``, after it has found nothing wrong with the name."""
    try:
        import huggingface_hub
        from huggingface_hub import utils
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise UserError("push_to_hub needs huggingface_hub; install it with: pip install huggingface_hub") from None
    try:
        tools: Any = utils
        tools.validate_repo_id(repo_id)
    except HFValidationError:
        raise UserError(
            f"{shown(repr(repo_id))}: no name of a repository, expected NAME/REPO of letters, digits, '-', '_' and "
            "'.', such as me/tiny-classifier"
        ) from None
    return huggingface_hub


@contextmanager
def _as_user_error(repo_id: str) -> Iterator[None]:
    """Turn what the hub, and the way to it, raise into one line; draw no bars where there is no terminal."""
    from huggingface_hub import constants, utils
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    tools: Any = utils
    try:
        with nullcontext() if sys.stderr.isatty() else tools.disable_progress_bars():
            yield
    except OfflineModeIsEnabled:
        raise UserError(
            f"{repo_id}: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it where there is a network"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{repo_id}: the hub takes nothing from you ({status}); log in with `hf auth login`, or set HF_TOKEN "
                "to a token that may write there"
            ) from None
        raise UserError(f"{repo_id}: the hub refuses ({one_line(error, 200)})") from None
    except Exception as error:  # of its transport, whose exceptions share no base class with it
        cause = error.__cause__ or error
        raise UserError(
            f"{repo_id}: not uploaded to {constants.ENDPOINT} ({type(cause).__name__}: {one_line(cause, 200)}); try "
            "again where there is a network"
        ) from None

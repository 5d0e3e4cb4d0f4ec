"""``lighten compress``: compress a trained network as far as given limits allow.

JSON: ``{"met", "folder", "path", "report", "reasons", "frontier", "confirmation"}``; ``frontier`` is an array of
``trial``, ``folder``, ``metric``, ``drop`` and the figures that were measured.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighten.cli.arguments import CODES as COMMON_CODES
from lighten.cli.arguments import add_command, errors_of_folder
from lighten.cli.output import print_json, stdout_aside
from lighten.errors import NeedNotMetError, UserError, shown
from lighten.training.signals import Preempted

CODES = f"{COMMON_CODES},\n4 need not met, 143 stopped by a signal: the same command resumes"
STEPS = 4
"""Of an epoch, at least, where nobody says how large batches are."""
TARGETS = ("latency_ms", "batch", "threads", "bytes", "macs", "parameters")


def add_parser(commands: Any) -> None:
    """Add the command."""
    compress = add_command(
        commands, "compress", "compress a trained model as far as given limits allow", _compress, json=True,
        example="runs/x/a/dense --max-drop 0.01 --budget 20min", codes=CODES,
    )  # fmt: skip
    compress.usage = "lighten compress FOLDER [option ...]"
    compress.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder, whose config names its data")
    add = compress.add_argument
    add("--max-drop", metavar="SHARE", help="accepted loss, 0.01 or 1%% (0.01 if no limit is given)")
    add("--latency-ms", metavar="MS", help="limit in onnxruntime, or 50%% of the original's")
    add("--batch", type=int, metavar="N", help="batch size of the timed call")
    add("--threads", type=int, metavar="N", help="threads of the timed call")
    add("--bytes", metavar="N", help="limit, or 50%%; also --macs and --parameters")
    add("--macs", metavar="N", help=argparse.SUPPRESS)
    add("--parameters", metavar="N", help=argparse.SUPPRESS)
    add("--budget", metavar="TIME", help="time for the search: 20min, 2h, or '12 epochs'")
    add("--data", metavar="NAME", help="data to use instead of the model's own")
    add("--data-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of that data")
    add("--out", type=Path, metavar="DIR", help="folder of the search (default: FOLDER-compressed)")


def _compress(arguments: argparse.Namespace) -> None:
    from lighten.utils.files import disk_errors_as_user_errors

    out = arguments.out or arguments.folder.with_name(f"{arguments.folder.name}-compressed")
    with stdout_aside(arguments.json):
        with errors_of_folder(arguments.folder, "compress"):
            model, data = _loaded(arguments.folder, arguments.data, arguments.data_options)
        from lighten.search.compress import compress

        given = {name: getattr(arguments, name) for name in TARGETS}
        target = {name: value for name, value in given.items() if value is not None}
        try:
            with disk_errors_as_user_errors(out):
                result = compress(
                    model, data, max_drop=arguments.max_drop, target=target or None, budget=arguments.budget,
                    folder=out, on_progress=lambda said: print(said, file=sys.stderr, flush=True),
                )  # fmt: skip
        except Preempted as stop:
            print(stop, file=sys.stderr)
            raise
        except KeyboardInterrupt:
            print(f"stopped, the best so far is saved in {out}; the same command resumes", file=sys.stderr)
            raise SystemExit(130) from None
    if arguments.json:
        print_json(as_json(result, out))
    else:
        print(f"{result}\n{result.folder}\n{result.path}\nreport {out / 'report.html'}")
    if not result.met:
        from lighten.run.search import not_met

        raise NeedNotMetError(not_met(result))


def as_json(result: Any, out: Path) -> dict[str, Any]:
    """Return the result of a search, whose folder is ``out``, as plain values."""
    from lighten.delivery.report.search_figures import read_search

    return {
        "met": bool(result.met),
        "folder": str(result.folder),
        "path": str(result.path),
        "report": str(out / "report.html"),
        "reasons": list(result.reasons),
        "frontier": [
            {"trial": p.trial, "folder": str(p.folder), "metric": p.metric, "drop": p.drop, **p.figures}
            for p in result.frontier
        ],
        "confirmation": read_search(out).told.get("confirmation"),
    }


def _loaded(folder: Path, name: str | None, words: Sequence[str]) -> tuple[Any, Any]:
    """Return the model of a folder, and its data or those that are given instead."""
    from lighten.data import build_data
    from lighten.delivery.folders.model import CONFIG, load
    from lighten.delivery.folders.run import read_json

    model = load(folder)
    own = read_json(folder / CONFIG, made_by="lighten.save").get("data") or {}
    if name is None and not own.get("name"):
        raise UserError(f"{folder / CONFIG}: says nothing of its data; name them with --data")
    given = dict(map(_pair, words))
    options = {**(own.get("options") or {}), **given} if name in (None, own.get("name")) else given
    data: Any = build_data(name or own["name"], **options)
    if "batch_size" not in options:
        data.prepare_data()
        data.setup("fit")
        data.batch_size = max(1, min(data.batch_size, data.train_samples // STEPS))
    if not words and name is None and own.get("fingerprint") not in (None, data.fingerprint):
        print(f"warning: {folder} was trained on other data of that name", file=sys.stderr)
    return model, data


def _pair(word: str) -> tuple[str, Any]:
    import yaml

    key, equals, text = word.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        equals, value = "", None
    if not key or not equals:
        raise UserError(f"--data-options {shown(repr(word))}: expected KEY=VALUE, as folder=photos/")
    return key, value

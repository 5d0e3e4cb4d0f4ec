"""Runs whose disk refuses in the middle: ``python benchmarks/reliability.py disks [PLACE …] [--ways WAY …] [--quick]``.

The real command, ``recipe=smoke`` with a teacher, a cache of its answers, pruning and int8, meets a disk that refuses
from a certain write on. Then the disk is mended and the same command goes on. Asked of each case: exit code 1; one line
that names what cannot be written and why, no traceback; the newest good checkpoint from before can still be loaded;
after the next start no temporary file is left, and everything learned and delivered has the bits of a run whose disk
never refused. A place is the first thing that cannot be written; whatever comes after it cannot be written either.

Ways that are real: ``full`` (a tmpfs without room, ENOSPC), ``read-only`` (the tmpfs is remounted so, EROFS),
``taken`` (folders lose their write permission under a process that is not root, EACCES), ``limit`` (RLIMIT_FSIZE,
EFBIG). The first three want root. Ways that are played, as no disk here does them: ``quota`` (EDQUOT) and ``broken``
(EIO), which most file systems tell no sooner than at fsync, and ``sealed`` (EROFS as files are opened).
"""

import argparse
import contextlib
import errno
import functools
import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from reliability_kills import SETTINGS, differing, digest, result

RECIPES = Path(__file__).parents[1] / "recipes"
BALLAST, NOBODY, EPOCHS = "ballast", 65534, 3


@dataclass(frozen=True)
class Place:
    """The first thing that cannot be written: a path below ``runs``, and which time; ``delivery``: after the fit."""

    path: str
    time: int = 1
    delivery: bool = False
    settings: tuple[str, ...] = ()


TARGETS = ("delivery.targets=[onnx,openvino,litert,executorch]",)
RANKS = ("trainer.devices=2", "trainer.strategy=ddp")
PLACES = {
    "recipe": Place(r"/recipe\.yaml$"),
    "teacher's checkpoint": Place(r"\.fit/checkpoints/[^/]*ckpt$"),
    "teacher's history": Place(r"\.fit/history\.jsonl$", 3),
    "teacher's weights": Place(r"\.fit/done/?"),
    "teacher's place": Place(r"^references/[0-9a-f]{64}$"),
    "teacher's folder": Place(r"/teacher/"),
    "fit.json": Place(r"/fit\.json$"),
    "cache": Place(r"^cache/"),
    "cache's answers": Place(r"^cache/.*/part-0\.bin$", 4),
    "dense student": Place(r"/one/dense"),
    "checkpoint": Place(r"one/checkpoints/.*ckpt$", 6),
    "manifest": Place(r"one/checkpoints/.*manifest\.json$", 3),
    "history": Place(r"one/history\.jsonl$", 9),
    "CSV log": Place(r"/csv/.*metrics\.csv$", 2, settings=("logger=csv",)),
    "TensorBoard log": Place(r"one/history\.jsonl$", 9, settings=("logger=tensorboard",)),
    "W&B log": Place(r"one/history\.jsonl$", 9, settings=("logger=wandb",)),
    "plan.json": Place(r"/plan\.json$", 1, True),
    "student": Place(r"/student/model\.safetensors$", 1, True),
    "student.onnx": Place(r"/student\.onnx$", 1, True),
    "float onnx": Place(r"/student_float32\.onnx$", 1, True),
    "scores": Place(r"/scores\.json$", 1, True),
    "card": Place(r"/student/README\.md$", 1, True),
    "report": Place(r"/report\.html$", 1, True),
    "OpenVINO": Place(r"one/\.writing-\w+\.tmp$", 1, True, TARGETS),
    "OpenVINO's names": Place(r"/student\.bin$", 1, True, TARGETS),
    "LiteRT": Place(r"/student\.tflite$", 1, True, TARGETS),
    "ExecuTorch": Place(r"/student\.pte$", 1, True, TARGETS),
    "checkpoint of two ranks": Place(r"one/checkpoints/.*ckpt$", 6, settings=RANKS),
}
PLAYED = {"quota": errno.EDQUOT, "broken": errno.EIO, "sealed": errno.EROFS}
REAL = {"full": errno.ENOSPC, "read-only": errno.EROFS, "taken": errno.EACCES, "limit": errno.EFBIG}
ROOTS_ONLY = ("full", "read-only", "taken")
IMPOSSIBLE = {
    ("W&B log", "read-only"),  # its own process keeps a file open, and no file system is remounted under that
    ("checkpoint of two ranks", "limit"),  # no file may have the 65 bytes that tell the other rank why
}

QUICK = {
    "checkpoint": "limit", "manifest": "quota", "cache's answers": "broken", "history": "sealed",
    "teacher's weights": "limit", "dense student": "quota", "CSV log": "limit", "student": "limit", "scores": "quota",
    "OpenVINO's names": "broken", "LiteRT": "quota", "ExecuTorch": "limit", "checkpoint of two ranks": "sealed",
}  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability.py disks")
    parser.add_argument("places", nargs="*", choices=[*PLACES, []], metavar="PLACE", help=", ".join(PLACES))
    parser.add_argument("--ways", nargs="*", choices=[*REAL, *PLAYED], default=[*REAL, *PLAYED])
    parser.add_argument("--quick", action="store_true", help="one way for some places, none of which wants root")
    parser.add_argument("--count", type=int, help="cases at most")
    arguments = parser.parse_args(argv)
    cases = [(place, way) for place in arguments.places or PLACES for way in arguments.ways]
    cases = [case for case in cases if case not in IMPOSSIBLE]
    if arguments.quick:
        cases = [case for case in QUICK.items() if not arguments.places or case[0] in arguments.places]
    elif os.geteuid() != 0:
        print(f"not root: {', '.join(ROOTS_ONLY)} cannot be tried", file=sys.stderr)
        cases = [case for case in cases if case[1] not in ROOTS_ONLY]
    _warm_up()
    bad: dict[tuple[str, str], list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        bench = Bench(Path(scratch))
        for case in cases[: arguments.count]:
            bad[case] = bench.tried(*case)
            told = f" ({bench.line})" if not bad[case] else ""
            print(f"{' / '.join(case)}: {'; '.join(bad[case]) or 'good'}{told}", file=sys.stderr, flush=True)
    ways = list(dict.fromkeys(way for _, way in bad))
    numbers = {way: errno.errorcode[{**REAL, **PLAYED}[way]] for way in ways}
    print(f"| first refused | {' | '.join(f'{way} ({numbers[way]})' for way in ways)} | what failed |")
    print(f"|---|{'---|' * len(ways)}---|")
    for place in dict.fromkeys(place for place, _ in bad):
        cells = [_cell(bad.get((place, way))) for way in ways]
        failed = dict.fromkeys(words for way in ways for words in bad.get((place, way), []))
        print(f"| {place} | {' | '.join(cells)} | {'; '.join(failed) or 'nothing'} |")
    good = sum(not words for words in bad.values())
    print(f"\n{good} of {len(bad)} cases are good.")
    return int(good < len(bad))


class Bench:
    """Runs of one recipe in scratch folders, and what one comes to whose disk never refuses."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.line = ""
        self._numbers = itertools.count()

    @functools.cache  # noqa: B019 — there is one bench
    def fitted(self, settings: tuple[str, ...]) -> Path:
        """Return the runs folder of a fit that is done, nothing delivered."""
        return self._undisturbed(delivery=False, settings=settings)

    @functools.cache  # noqa: B019
    def expected(self, delivery: bool, settings: tuple[str, ...]) -> dict[str, str]:
        """Return what a run comes to whose disk never refuses."""
        if not delivery:
            return _comes_to(self.fitted(settings))
        runs = self._folder()
        shutil.copytree(self.fitted(settings), runs, dirs_exist_ok=True)
        return _comes_to(self._undisturbed(delivery=True, settings=settings, runs=runs))

    def tried(self, name: str, way: str) -> list[str]:
        """Try one case and return what is wrong."""
        place = PLACES[name]
        expected = self.expected(place.delivery, place.settings)
        with self._disk(way) as runs:
            if place.delivery:
                shutil.copytree(self.fitted(place.settings), runs, dirs_exist_ok=True)
            code, out = _started(runs, place, functools.partial(_plant, runs, place, way))
            wrong = self._told(code, out, way)
            wrong += _kept(runs, place)
            _mend(runs)
            code, out = _started(runs, place, lambda: None)
            if code != 0:
                return [*wrong, f"afterwards exit code {code}: {out.splitlines()[-1:]}"]
            left = [path.name for path in runs.rglob("*") if ".writing-" in path.name]
            return wrong + [f"left: {name}" for name in left] + differing(expected, _comes_to(runs))

    def _told(self, code: int, out: str, way: str) -> list[str]:
        reason = os.strerror({**REAL, **PLAYED}[way])
        told = [line for line in out.splitlines() if line.startswith("error: ")]
        lines = list(dict.fromkeys(re.sub(r"^error: rank \d failed: ", "error: ", line) for line in told))
        self.line = lines[-1] if lines else ""
        wrong = [] if code == 1 else [f"exit code {code}"]
        wrong += [] if len(lines) == 1 else [f"{len(lines)} lines of error: {out.splitlines()[-1:]}"]
        wrong += [] if not lines or reason in lines[0] else [f"not the reason: {lines[0]}"]
        if "Traceback" in out:
            wrong.append(f"a traceback: {out[out.index('Traceback') :][:2000].splitlines()[-1]}")
        return wrong

    def _undisturbed(self, *, delivery: bool, settings: tuple[str, ...] = (), runs: Path | None = None) -> Path:
        runs = runs or self._folder()
        code, out = _started(runs, Place("", delivery=delivery, settings=settings), lambda: None)
        if code != 0:
            raise SystemExit(f"a run whose disk never refuses fails: {out}")
        return runs

    def _folder(self) -> Path:
        path = self.scratch / f"{next(self._numbers)}" / "runs"
        path.mkdir(parents=True)
        return path

    @contextlib.contextmanager
    def _disk(self, way: str) -> Iterator[Path]:
        runs = self._folder()
        if way not in ("full", "read-only"):
            yield runs
        else:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", runs], check=True)
            try:
                yield runs
            finally:
                subprocess.run(["umount", "-l", runs], check=True)
        shutil.rmtree(runs.parent)


def _comes_to(runs: Path) -> dict[str, str]:
    """Return the digests of what must be the same after a refusal: all learned, and all delivered that has no times."""
    home = runs / "smoke" / "one"
    names = ("*.onnx", "*.xml", "*.bin", "*.tflite", "*.pte", "plan.json", "student/*")
    files = sorted(path for name in names for path in home.glob(name) if path.name != "README.md")
    whole = result(runs)
    for logs in (r"csv/version_\d+", r"events\.out[^,]*", r"wandb/offline-run-[^,]*"):
        whole["files"] = re.sub(logs, "log", whole["files"])  # each start has its own
    whole["files"] = ", ".join(dict.fromkeys(whole["files"].split(", ")))
    return {**whole, "delivered": digest([path.read_bytes() for path in files])}


def _kept(runs: Path, place: Place) -> list[str]:
    from lighten.training.checkpoint import AtomicCheckpointIO, latest_good

    folder = runs / "smoke" / "one" / "checkpoints"
    if not list(folder.glob("*.manifest.json")):
        return ["no checkpoint"] if place.delivery or place.path.startswith("one/checkpoints") else []
    newest = latest_good(folder)
    if newest is None:
        return ["no good checkpoint is left"]
    AtomicCheckpointIO().load_checkpoint(newest)
    return []


def _started(runs: Path, place: Place, prepare: Callable[[], None]) -> tuple[int, str]:
    """Run the command in a fork; return its exit code and what it has printed."""
    words = [*SETTINGS, f"trainer.max_epochs={EPOCHS}", f"runs={runs}", *place.settings]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.close(reading)
            _begin(words, place.delivery, prepare)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        out = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out


def _begin(words: list[str], delivery: bool, prepare: Callable[[], None]) -> None:
    import lighten.cli.main
    import lighten.run.pipeline

    if not delivery:
        lighten.run.pipeline._deliver = lighten.run.pipeline.publish = lambda *_, **__: None
    sys.argv = [str(RECIPES.parent / "train.py"), *words]  # how Lightning starts the second rank
    prepare()
    raise SystemExit(lighten.cli.main.main(words, recipes=RECIPES, default="train"))


def _plant(runs: Path, place: Place, way: str) -> None:
    """Let the disk below ``runs`` refuse from the write of ``place`` on."""
    pattern, count, refusing = re.compile(place.path), itertools.count(1), [False]
    root, fsync, pwrite = f"{runs}/", os.fsync, os.pwrite

    def watched(event: str, args: tuple[Any, ...]) -> None:
        path = _written(event, args)
        if path is None or not path.startswith(root):
            return
        name = re.sub(r"\.writing-(.*?)-\d+\.tmp", r"\1", path.removeprefix(root))
        if not refusing[0] and pattern.search(name) and next(count) == place.time:
            refusing[0] = True
            if way in REAL:
                _refuse(runs, way)
        if refusing[0] and way == "sealed":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def refused(call: Callable[..., Any], descriptor: int, *args: Any) -> Any:
        if refusing[0] and way in ("quota", "broken") and os.readlink(f"/proc/self/fd/{descriptor}").startswith(root):
            raise OSError(PLAYED[way], os.strerror(PLAYED[way]))
        return call(descriptor, *args)

    os.fsync = functools.partial(refused, fsync)
    os.pwrite = functools.partial(refused, pwrite)
    sys.addaudithook(watched)


def _written(event: str, args: tuple[Any, ...]) -> str | None:
    """Return the path that a call is about to write, make, remove or give a name to."""
    if event == "open":
        path, _, flags = args
        return str(path) if not isinstance(path, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None
    if event in ("os.remove", "os.mkdir", "os.rmdir"):
        return str(args[0])
    return str(args[1]) if event == "os.rename" else None


def _refuse(runs: Path, way: str) -> None:
    if way == "full":
        with (runs / BALLAST).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
    elif way == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", runs], check=True)
    elif way == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    elif way == "taken":
        _allow(runs, 0o555, 0o444)
        os.setegid(NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _mend(runs: Path) -> None:
    if os.path.ismount(runs):
        subprocess.run(["mount", "-o", "remount,rw", runs], check=True)
    (runs / BALLAST).unlink(missing_ok=True)
    _allow(runs, 0o755, 0o644)


def _allow(runs: Path, folders: int, files: int) -> None:
    for path in [runs, *runs.rglob("*")]:
        os.chmod(path, folders if path.is_dir() else files)


def _cell(wrong: list[str] | None) -> str:
    return "–" if wrong is None else "good" if not wrong else "BAD"


def _warm_up() -> None:
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)  # forks have no other threads
    import lighten.cli.main
    import lighten.run.pipeline  # noqa: F401


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

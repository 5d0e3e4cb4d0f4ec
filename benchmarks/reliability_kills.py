"""Runs that are killed and go on: ``python benchmarks/reliability.py kills [HOW …] [--count N] [--epochs N]``.

The real command, ``recipe=smoke`` with a teacher, a cache of its answers, pruning and int8, is killed by SIGKILL and
started again by the same words until it is done; only what is delivered afterwards is left out. Starts take turns in
having 0 and 2 workers, and a temporary folder on another file system. What must be equal to a run that nobody
disturbed, by SHA-256: weights, ranges, optimizer, schedule, masks, the teacher, the cache, the history but for its
times, and the names of the files. Starts are forks of one process that has imported everything.

HOW is one or several of

    random  at random moments of a run, a hundred times in one
    saves   at and inside the calls by which a run writes and removes its checkpoints, many times for each of them, in
            forks of it; after each kill the latest is loaded, and at last the run is done by itself
    resumes likewise, and the run is started again after each
    steps   between the optimizer's step and the mask that follows it
    cuts    in a fit that cuts while it trains: before, within and right after a cut
    fill    between the answers of a batch on their way into the cache
    damage  no kills: bits flipped and ends cut off in checkpoints and manifests, which must all be noticed
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"
SETTINGS = [
    "recipe=smoke", "id=one", "batch_size=32", "data_options.validation=11700", "data_options.views=2",
    "distil.cache=true", "distil.preflight=false", "trainer.limit_train_batches=1.0", "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false", "logger=none",
]  # fmt: skip
COUNTS = {"random": 100, "saves": 300, "resumes": 40, "steps": 30, "cuts": 50, "fill": 30, "damage": 300}
EPOCHS = {"random": 40, "saves": 6, "resumes": 6, "steps": 4, "cuts": 4, "fill": 4, "damage": 3}
HERE, ELSEWHERE = tempfile.gettempdir(), "/dev/shm"

Doom = Callable[[random.Random], "Death"]


@dataclass(frozen=True)
class Death:
    """What a start does to be killed, and after how many seconds it is killed from outside."""

    prepare: Callable[[], None] = lambda: None
    after: float | None = None


@dataclass
class Tally:
    """What has been counted of one way to kill."""

    killed: int = 0
    starts: int = 0
    runs: int = 0
    moments: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability.py kills")
    parser.add_argument("how", nargs="*", choices=[*COUNTS, []], metavar="HOW", help=", ".join(COUNTS))
    parser.add_argument("--count", type=int, help=f"kills of each; {COUNTS} if not given")
    parser.add_argument("--epochs", type=int, help=f"of a run; {EPOCHS} if not given")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    _warm_up()
    failed = False
    print("| kills | asked | good | runs, starts | what failed |\n|---|---:|---:|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        benches: dict[str, Bench] = {}
        for how in arguments.how or COUNTS:
            count = arguments.count or COUNTS[how]
            epochs = arguments.epochs or EPOCHS[how]
            name = f"{epochs}-{'cuts' if how == 'cuts' else 'masks'}"
            bench = benches.setdefault(name, Bench(Path(scratch) / name, epochs, live=how == "cuts"))
            tally = bench.count(how, count, random.Random(f"{arguments.seed}/{how}"))
            good = tally.killed - len(tally.failures)
            failed |= good < count
            what = "; ".join(dict.fromkeys(tally.failures)) or "nothing"
            print(f"| {how} | {count} | {good} | {tally.runs}, {tally.starts} | {what} |", flush=True)
            told = ", ".join(f"{moment} {times}" for moment, times in sorted(tally.moments.items()))
            print(f"{how}: {told}", file=sys.stderr)
    return int(failed)


class Bench:
    """Runs of one recipe in scratch folders, and what an undisturbed one comes to."""

    def __init__(self, scratch: Path, epochs: int, *, live: bool = False) -> None:
        self.scratch = scratch
        self.epochs = epochs
        self.pace = 0.0
        self.settings = [*SETTINGS, f"trainer.max_epochs={epochs}", f"compress.prune.live={live}"]
        self._numbers = itertools.count()

    @functools.cached_property
    def expected(self) -> dict[str, str]:
        """What a run comes to that nobody has disturbed; with 0 and with 2 workers."""
        found = []
        for turn in (0, 1):
            runs = self._folder()
            begun = time.monotonic()
            if self._start(runs, turn, Death()) != 0:
                raise SystemExit(f"a run that nobody disturbs fails: {_tail(runs)}")
            found.append(result(runs))
            if turn == 0:
                self.whole, whole = runs, time.monotonic() - begun
                begun = time.monotonic()
                self._start(runs, turn, Death())  # is done, and only starts
                start = time.monotonic() - begun
                self.pace = start + 3 * (whole - start) / self.epochs
        if differing(*found):
            raise SystemExit(f"undisturbed runs with 0 and 2 workers differ: {', '.join(differing(*found))}")
        return found[0]

    def count(self, how: str, count: int, draw: random.Random) -> Tally:
        """Kill or damage in one way, ``count`` times."""
        if how in ("damage", "saves"):
            return (self.damage if how == "damage" else self.saves)(count, draw)
        return self.kill(self.at_random if how == "random" else DOOMS[how], count, draw)

    def kill(self, doom: Doom, count: int, draw: random.Random) -> Tally:
        """Kill starts until ``count`` have died; every run is finished and compared."""
        tally = Tally()
        expected = self.expected
        while tally.killed < count:
            runs = self._folder()
            tally.runs += 1
            best = -1
            for turn in itertools.count():
                dying = doom(draw) if tally.killed < count else Death()
                tally.starts += 1
                code = self._start(runs, turn, dying)
                if code != -signal.SIGKILL:
                    break
                tally.killed += 1
                moment = (runs / "died").read_text() if (runs / "died").exists() else "by the clock"
                (runs / "died").unlink(missing_ok=True)
                tally.moments[moment] = tally.moments.get(moment, 0) + 1
                best = _check_latest(runs, best, tally)
            if code != 0:
                tally.failures.append(f"exit code {code}: {_tail(runs)}")
                shutil.copytree(runs, f"{HERE}/lighten-killed-{os.getpid()}-{tally.runs}")
                break
            tally.failures += differing(expected, result(runs))
            shutil.rmtree(runs)
        return tally

    def at_random(self, draw: random.Random) -> Death:
        """Die at a random moment: while starting, training the teacher, planning, training, saving.

        At such a pace a start gets some way into the next epochs, and a run lasts for many of them.
        """
        return Death(after=draw.uniform(0.0, self.pace))

    def saves(self, count: int, draw: random.Random) -> Tally:
        """Kill forks that save and remove what a run is about to save and remove, until ``count`` have died."""
        tally = Tally()
        expected = self.expected
        while tally.killed < count:
            runs = self._folder()
            tally.runs += 1
            seed = draw.random()
            each = -(-(count - tally.killed) // (2 * self.epochs))
            prepare = functools.partial(_kill_in_forks, runs / "trials", seed, each)
            for turn, dying in enumerate((Death(prepare), Death())):  # the next start clears up
                tally.starts += 1
                code = self._start(runs, turn, dying)
                if code != 0:
                    tally.failures.append(f"exit code {code}: {_tail(runs)}")
                    return tally
            for line in (runs / "trials").read_text().splitlines():
                moment, problem = line.split("\t")
                tally.killed += 1
                tally.moments[moment] = tally.moments.get(moment, 0) + 1
                tally.failures += [problem] if problem else []
            (runs / "trials").unlink()
            tally.failures += differing(expected, result(runs))
            shutil.rmtree(runs)
        return tally

    def damage(self, count: int, draw: random.Random) -> Tally:
        """Flip bits and cut ends off in the newest checkpoint; it must be passed over, and refused when asked for."""
        from lighten.training.checkpoint import latest_good, manifest_of

        tally = Tally()
        assert self.expected
        folder = self.whole / "smoke" / "one" / "checkpoints"
        newest = latest_good(folder)
        assert newest is not None
        for number in range(count):
            target = manifest_of(newest) if draw.random() < 0.3 else newest
            whole = target.read_bytes()
            at = draw.randrange(len(whole))
            flipped = bytearray(whole)
            flipped[at] ^= 1 << draw.randrange(8)
            target.write_bytes(bytes(flipped) if number % 2 else whole[:at])
            tally.killed += 1
            kind = f"{'bits' if number % 2 else 'ends'} of {'checkpoints' if target == newest else 'manifests'}"
            tally.moments[kind] = tally.moments.get(kind, 0) + 1
            if not _is_noticed(newest):
                tally.failures.append(f"{target.name}: {'bit' if number % 2 else 'end'} at {at} went unnoticed")
            target.write_bytes(whole)
        return tally

    def _folder(self) -> Path:
        path = self.scratch / f"{next(self._numbers)}"
        path.mkdir(parents=True)
        return path

    def _start(self, runs: Path, turn: int, dying: Death) -> int:
        """Run the command in a fork; return its exit code, or minus the signal that ended it."""
        words = [*self.settings, f"runs={runs}", f"workers={2 * (turn % 2)}"]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _become(runs, ELSEWHERE if turn // 2 % 2 and Path(ELSEWHERE).is_dir() else HERE)
                dying.prepare()
                from lighten.cli.main import main as command

                code = command(words, recipes=RECIPES, default="train")
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if dying.after is not None:
            time.sleep(dying.after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result(runs: Path) -> dict[str, str]:
    """Return the SHA-256 of everything that a finished run leaves behind and that must not depend on kills."""
    from lighten.quantization.activation_quantizers import QUANTIZERS
    from lighten.training.checkpoint import AtomicCheckpointIO, latest_good
    from lighten.training.record import read

    home = runs / "smoke" / "one"
    newest = latest_good(home / "checkpoints")
    assert newest is not None
    state = AtomicCheckpointIO().load_checkpoint(newest)
    weights = {k: v for k, v in state["state_dict"].items() if QUANTIZERS not in k}
    ranges = {k: v for k, v in state["state_dict"].items() if QUANTIZERS in k}
    assert ranges, "nothing was quantized"
    (masks,) = [v for k, v in state["callbacks"].items() if k.startswith("Prune{")]
    assert masks["plan"]
    lines = read(home / "history.jsonl")
    rows = [{k: v for k, v in line.items() if k != "time" and not k.startswith("system/")} for line in lines]
    found: dict[str, Any] = {
        "weights": weights, "ranges": ranges, "optimizer": state["optimizer_states"], "masks": masks,
        "schedule": state["lr_schedulers"], "step": state["global_step"], "history": rows,
        "dense": _bytes_of(home / "dense", "*.safetensors"), "teacher": _bytes_of(home / "teacher", "*.safetensors"),
        "references": _bytes_of(runs / "references", "*/model.safetensors"),
        "cache": _bytes_of(runs / "cache", "*/part-*.bin"),
    }  # fmt: skip
    files = [p.relative_to(runs) for p in runs.rglob("*") if p.is_file() and p.name != "log"]
    names = [f"{p.parent}/checkpoint{p.suffix}" if ".ckpt" in p.name else str(p) for p in files]
    return {name: digest(value) for name, value in found.items()} | {"files": ", ".join(sorted(names))}


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return the names of what is not equal, and which files there are too many or too few of."""
    names = [name for name in expected if expected[name] != found[name] and name != "files"]
    there, here = (Counter(of["files"].split(", ")) for of in (expected, found))
    # killed between the two saves of the last epoch, it goes on from the first and needs no other
    lost = [name for name in there - here if "/checkpoint." not in name]
    return [*names, *(f"one more {name}" for name in here - there), *(f"no {name}" for name in lost)]


def digest(value: Any) -> str:
    """Return the SHA-256 of plain values and tensors, nested."""
    seen = hashlib.sha256()
    _feed(seen.update, value)
    return seen.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            update(f"{key}:".encode())
            _feed(update, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(update, item)
            update(b",")
    else:
        update(value if isinstance(value, bytes) else repr(value).encode())


def in_a_save(draw: random.Random) -> Death:
    """Die before one of the next calls that reach the disk for a checkpoint, or in the middle of writing one."""
    call, share = draw.randrange(1, 40), draw.random()
    return Death(functools.partial(_die_in_a_save, call, share))


def before_a_mask(draw: random.Random) -> Death:
    """Die after an optimizer step, before its masks are applied."""
    from lighten.pruning.mask import Masks

    return Death(functools.partial(_die_at, Masks, "apply_", draw.randrange(1, 25)))


def at_a_cut(draw: random.Random) -> Death:
    """Die before a cut, between the cut and the optimizer's state, or in the step after it."""
    from lighten.pruning import callback, pruner

    owner, name = draw.choice([(pruner, "prove_cut_"), (callback, "slice_state_"), (callback, "rewrap_")])
    return Death(functools.partial(_die_at, owner, name, draw.randrange(1, 6)))


def in_the_fill(draw: random.Random) -> Death:
    """Die between the answers of a batch."""
    return Death(functools.partial(_die_at, os, "pwrite", draw.randrange(1, 700)))


DOOMS: dict[str, Doom] = {"resumes": in_a_save, "steps": before_a_mask, "cuts": at_a_cut, "fill": in_the_fill}


def _warm_up() -> None:
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)  # forks have no other threads
    import lighten.cli.main
    import lighten.run.pipeline

    lighten.run.pipeline._deliver = lambda *_, **__: None
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(io.StringIO()):
        if lighten.cli.main.main(["train", *SETTINGS, f"runs={runs}", "trainer.max_epochs=1"], recipes=RECIPES):
            raise SystemExit("a run that nobody disturbs fails")


def _become(runs: Path, temporary: str) -> None:
    """Turn a fork into a start of its own: log, temporary folder."""
    log = os.open(runs / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TMPDIR"] = temporary
    tempfile.tempdir = None
    os.environ["LIGHTEN_DIED"] = str(runs / "died")


def _die(moment: str) -> None:
    Path(os.environ["LIGHTEN_DIED"]).write_text(moment)
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(owner: Any, name: str, call: int) -> None:
    """Let the process kill itself before the ``call``-th call of ``owner.name``."""
    wrapped, count = getattr(owner, name), itertools.count(1)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(count) == call:
            _die(name)
        return wrapped(*args, **kwargs)

    setattr(owner, name, dying)


def _kill_in_forks(record: Path, seed: float, each: int) -> None:
    """Before each save and removal let ``each`` forks do it and die; write their moments and what was wrong."""
    from lighten.training.checkpoint import AtomicCheckpointIO

    draw = random.Random(seed)
    plain = {name: getattr(AtomicCheckpointIO, name) for name in ("save_checkpoint", "remove_checkpoint")}

    def die(name: str, call: int, share: float, *args: Any) -> None:
        for each_name, method in plain.items():
            setattr(AtomicCheckpointIO, each_name, method)
        _die_in_a_save(call, share)
        getattr(AtomicCheckpointIO, name)(*args)

    def watch(name: str, forks: int, calls: int) -> None:
        def watched(io: Any, *args: Any, **kwargs: Any) -> None:
            path = Path(args[0] if name == "remove_checkpoint" else args[1])
            best = _latest_step(path.parent)
            for _ in range(forks):
                call, share = draw.randrange(1, calls), draw.random()
                pid = os.fork()
                if pid == 0:
                    try:
                        die(name, call, share, io, *args)
                    finally:
                        os._exit(0)
                if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL:
                    moment = Path(os.environ["LIGHTEN_DIED"])
                    step = _latest_step(path.parent)
                    problem = "" if best <= step else f"the latest step was {best} and is {step}"
                    with record.open("a") as file:
                        file.write(f"{moment.read_text()}\t{problem}\n")
                    moment.unlink()
                    best = max(best, step)
            plain[name](io, *args, **kwargs)

        setattr(AtomicCheckpointIO, name, watched)

    watch("save_checkpoint", each, 15)
    watch("remove_checkpoint", 1, 3)


def _die_in_a_save(call: int, share: float) -> None:
    import torch

    from lighten.training.checkpoint import AtomicCheckpointIO

    inside, count = [False], itertools.count(1)

    def counting(owner: Any, name: str) -> None:
        wrapped = getattr(owner, name)

        def dying(*args: Any, **kwargs: Any) -> Any:
            if inside[0] and next(count) == call:
                inside[0] = False
                _die(f"before {name}")
            return wrapped(*args, **kwargs)

        setattr(owner, name, dying)

    def writing(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if inside[0] and next(count) == call:
            inside[0] = False
            whole = io.BytesIO()
            save(content, whole)
            file.write(whole.getvalue()[: int(share * whole.tell())])
            file.flush()
            _die("in the data")
        save(content, file, *args, **kwargs)

    def watched(name: str) -> None:
        wrapped = getattr(AtomicCheckpointIO, name)

        def saving(*args: Any, **kwargs: Any) -> None:
            inside[0] = True
            try:
                wrapped(*args, **kwargs)
            finally:
                inside[0] = False

        setattr(AtomicCheckpointIO, name, saving)

    save, torch.save = torch.save, writing
    for owner, name in ((os, "fsync"), (os, "replace"), (io, "open"), (Path, "unlink"), (os, "close")):
        counting(owner, name)
    watched("save_checkpoint")
    watched("remove_checkpoint")


def _check_latest(runs: Path, best: int, tally: Tally) -> int:
    """Load the newest checkpoint after a kill, if there has been one; return its step."""
    step = _latest_step(runs / "smoke" / "one" / "checkpoints")
    if step < best:
        tally.failures.append(f"the latest step was {best} and is {step}")
    return max(best, step)


def _latest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint that can be loaded, -1 for none."""
    from lighten.training.checkpoint import AtomicCheckpointIO, latest_good

    path = latest_good(folder)
    return -1 if path is None else int(AtomicCheckpointIO().load_checkpoint(path)["global_step"])


def _is_noticed(path: Path) -> bool:
    from lighten.errors import UserError
    from lighten.training.checkpoint import AtomicCheckpointIO, latest_good

    if latest_good(path.parent) == path:
        return False
    try:
        AtomicCheckpointIO().load_checkpoint(path)
    except UserError:
        return True
    return False


def _bytes_of(folder: Path, pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob(pattern))]


def _tail(runs: Path) -> str:
    lines = [line for line in (runs / "log").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

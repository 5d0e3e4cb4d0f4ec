"""Verification of a run folder: what its ``scores.json`` claims is recomputed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lighten.delivery.export.proof import MAX_STEP_ERROR
from lighten.delivery.folders.provenance import INPUTS, PARTS, versions
from lighten.delivery.folders.run import FLOAT_FILE, open_run, read_json, sha256
from lighten.delivery.folders.student import FIT
from lighten.delivery.measure.evaluate import Evaluation, evaluate
from lighten.delivery.measure.latency import batch_of
from lighten.delivery.measure.measure import FILES, NETWORK, load_test_data
from lighten.delivery.measure.scores import (
    SEAL,
    ModelScores,
    Role,
    Scores,
    compare,
    read_scores,
    reference_of,
    seal_of,
)
from lighten.delivery.progress import ProgressCallback, Stages, ignore_progress
from lighten.delivery.report import card, search_page
from lighten.delivery.report import page as report
from lighten.delivery.report.search_figures import is_search
from lighten.delivery.runtimes.packages import require
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.training.checkpoint import AtomicCheckpointIO, verify
from lighten.training.lineage import ORIGIN
from lighten.utils.batch import BatchFormat
from lighten.utils.targets import with_parts

TOLERANCE = 0.002
"""How far a figure may be from the one claimed, relative to its size where that is above one: another processor may tip
a few samples of a thousand."""
LOOSE = {"macro_f1": 5.0, "mean_iou": 5.0, "kl": 5.0, "map": 5.0, "map_50": 5.0, "map_75": 5.0}
"""How many times that of figures in which a rare class's sample weighs more."""


@dataclass(frozen=True)
class Check:
    """One claim, and what was found; ``good`` says whether they agree. A ``note`` is worth knowing, and no failure."""

    name: str
    claimed: str
    found: str
    good: bool = True
    note: bool = False


def verify_run(
    run: str | Path, *, recipe: str | None = None, on_progress: ProgressCallback = ignore_progress
) -> list[Check]:
    """Recompute all that a run claims, and compare: hashes, sizes, ratios, origins, pages, accuracies, parity.

    Latencies belong to the machine that measured them and are not taken again; they are under the seal of
    ``scores.json``. Packages of other versions than the run's are noted.

    Args:
        run: the run folder.
        recipe: the SHA-256 of the settings in ``recipe.yaml``, where somebody knows how to read them.
        on_progress: called with the name of each stage and the share of all work that is done.

    Raises:
        UserError: if there are no scores, or a file that they speak of cannot be run.
    """
    run = open_run(run)
    scores = read_scores(run)
    stages = Stages(on_progress, 3)
    stages("hashes and sizes")
    files, sealed = _files(run, scores), _seal(run)
    checks = [sealed, *files, *_ratios(scores)]
    if all(check.good for check in files):  # what is another file needs no measuring
        stages("origins")
        checks += [*_origins(run, scores, recipe), *_checkpoints(run, scores)]
        checks += _pages(run) if sealed.good else []
        checks += _answers(run, scores, stages)
    return checks + _packages(scores)


def failures(checks: list[Check]) -> list[str]:
    """Return a line for every claim that does not hold."""
    return [f"{check.name}: claimed {check.claimed}, found {check.found}" for check in checks if not check.good]


def _seal(run: Path) -> Check:
    """Return whether the scores are as they were written, of whichever schema."""
    written = read_json(run / "scores.json", made_by="lighten measure RUN")
    claimed, found = str(written.get(SEAL)), seal_of(written)
    return Check("seal of scores.json", claimed[:12], found[:12], claimed == found)


def _files(run: Path, scores: Scores) -> list[Check]:
    claimed: dict[str, str] = {
        entry["name"]: entry["sha256"] for entry in scores["provenance"].get("files", {}).values()
    }
    claimed |= scores["provenance"].get("parts", {})
    checks = []
    for name, digest in claimed.items():
        found = sha256(run / name) if (run / name).exists() else "no such file"
        checks.append(Check(f"SHA-256 of {name}", digest[:12], found[:12], found == digest))
    unknown = [name for name in (*PARTS, *FILES.values()) if (run / name).exists() and name not in claimed]
    checks += [Check(f"SHA-256 of {name}", "nothing", sha256(run / name)[:12], good=False) for name in unknown]
    sizes = [(FILES[role], model["bytes"]) for role, model in scores["models"].items() if model is not None]
    sizes += [(FLOAT_FILE, scores["gate"]["float_bytes"])] if "gate" in scores else []
    sizes += [(found["file"], found["bytes"]) for found in scores.get("targets", {}).values() if "file" in found]
    for name, size in dict.fromkeys(sizes):
        actual = sum(path.stat().st_size for path in with_parts(run / name) if path.exists())
        checks.append(Check(f"bytes of {name}", f"{size:,}", f"{actual:,}", actual == size))
    return checks


def _ratios(scores: Scores) -> list[Check]:
    """Return whether the comparison follows from the models' figures."""
    compressed = scores["models"]["compressed"]
    if compressed is None:
        raise UserError("scores.json holds no compressed model; make it again with `lighten measure RUN`")
    expected = compare(task_of(scores["task"]["settings"]), reference_of(scores)[1], compressed)
    stated: Mapping[str, Any] = scores["comparison"]
    return [
        Check(name, f"{stated[name]:.4g}", f"{value:.4g}", abs(stated[name] - value) <= 1e-9 * max(1.0, abs(value)))
        for name, value in expected.items()
    ]


def _origins(run: Path, scores: Scores, recipe: str | None) -> list[Check]:
    """Return whether recipe, teacher and student are those that the scores speak of."""
    stated = scores["provenance"].get("made_of", {})
    config = read_json(run / "student" / "config.json", made_by=f"lighten shrink {run}")
    checks = [_same(f"{name} of student/", stated, name, config.get("made_of", {}).get(name)) for name in INPUTS]
    if recipe is not None:
        checks.append(_same("recipe of recipe.yaml", stated, "recipe", recipe))
    fit = read_json(run / FIT, made_by="lighten train recipe=…") if (run / FIT).exists() else {}
    if fit.get("teachers") == 1:  # of several, the run folder holds the first
        from lighten.delivery.folders.model import load
        from lighten.distillation.teacher import fingerprint

        checks.append(_same("teacher of teacher/", stated, "teacher", fingerprint(load(run / "teacher"))))
    return checks


def _checkpoints(run: Path, scores: Scores) -> Iterator[Check]:
    """Yield whether checkpoints are whole, and the newest is of this recipe, teacher and data."""
    paths = sorted((run / "checkpoints").glob("last-*.ckpt"))
    if not paths:
        yield Check("checkpoints", "some", "none are left", note=True)
    for path in paths:
        problem = verify(path)
        yield Check(path.name, "whole", problem or "whole", problem is None)
        if problem is None and path == paths[-1]:
            entry = AtomicCheckpointIO().load_checkpoint(path).get(ORIGIN, {})
            stated = scores["provenance"].get("made_of", {})
            yield from (_same(f"{n} of checkpoints/", stated, n, entry.get(n)) for n in ("recipe", "teacher", "data"))


def _pages(run: Path) -> Iterator[Check]:
    """Yield whether report and model card are what these scores give."""
    page = search_page.render if is_search(run) else report.render
    for name, render, step in (("report.html", page, "report"), ("student/README.md", card.render, "card")):
        if (run / name).exists():
            same = (run / name).read_bytes() == render(run).encode()
            yield Check(name, "of these scores", "so it is" if same else f"another; `lighten {step} {run}`", same)


def _answers(run: Path, scores: Scores, stages: Stages) -> Iterator[Check]:
    from lighten.delivery.folders import model as folder

    config = read_json(run / "student" / "config.json", made_by=f"lighten shrink {run}")
    data = load_test_data(config)
    yield _same("data that were measured on", scores["provenance"].get("data", {}), "fingerprint", data.fingerprint)
    yield _same("data that were learned from", scores["provenance"].get("made_of", {}), "data", data.fingerprint)
    task = task_of(scores["task"]["settings"])
    roles = [role for role, model in scores["models"].items() if model is not None]
    reference = str(reference_of(scores)[0])
    targets = {name: stated for name, stated in scores.get("targets", {}).items() if "file" in stated}
    with ExitStack() as stack:
        runners = {str(role): stack.enter_context(open_runner(run / FILES[role])) for role in roles}
        runners[NETWORK] = stack.enter_context(open_runner(folder.load(run / "student")))
        pairs = [(reference, "compressed"), ("compressed", NETWORK)]
        for target in [name for name in targets if name != "onnx"]:
            try:
                require(target)
            except UserError as error:
                yield Check(f"answers of {targets[target]['file']}", "as stated", str(error), note=True)
                continue
            runners[target] = stack.enter_context(open_runner(run / targets[target]["file"]))
            pairs += [(target, "compressed"), (target, NETWORK)]
        stages("answers on the test split")
        batches = stages.each(data.test_dataloader())
        found = evaluate(task, runners, batches, pairs=pairs, names=list(config["classes"]))
    for role in roles:
        stated = scores["models"][role]
        assert stated is not None
        yield from _metrics(FILES[role], task, stated, found.metrics[role])
        yield from _parts(FILES[role], scores["parts"], role, found)
        yield from _work(run / FILES[role], stated, data.test_dataloader())
    comparison: Any = scores["comparison"]
    if "logit_error" in comparison:
        off = found.differences["compressed", NETWORK].error
        near = abs(off - comparison["logit_error"]) <= MAX_STEP_ERROR
        yield Check("answers against PyTorch", f"{comparison['logit_error']:.2%} off", f"{off:.2%} off", near)
    yield from _alike("", comparison, found, (reference, "compressed"))
    yield from _flips("", comparison, found, "compressed")
    yield _number("samples", scores["provenance"].get("data", {}).get("samples", found.samples), found.samples)
    for target, stated in targets.items():
        if target in runners:
            yield from _metrics(stated["file"], task, stated, found.metrics[target])
            yield from _alike(f" of {stated['file']}", stated, found, (target, "compressed"))
            yield from _flips(f" of {stated['file']}", stated, found, target)


def _metrics(name: str, task: Task, stated: Mapping[str, Any], found: Mapping[str, float]) -> Iterator[Check]:
    for metric in task.reported:
        if metric in stated:
            yield _figure(f"{metric} of {name}", stated[metric], found.get(metric, 0.0))


def _parts(name: str, stated: Mapping[str, Any], role: Role, found: Evaluation) -> Iterator[Check]:
    """Yield whether the parts are as listed; one sample of a small part weighs more than one of all."""
    if not stated or role not in found.parts:
        return
    claimed, values = stated["values"][role], found.parts[role][1]
    known = len(claimed) == len(values) and all(
        (a is None) == (b is None) for a, b in zip(claimed, values, strict=True)
    )
    pairs = [(a, b) for a, b in zip(claimed, values, strict=False) if a is not None and b is not None]
    off = max((abs(a - b) / max(1.0, abs(a)) for a, b in pairs), default=0.0)
    good = known and off <= TOLERANCE * max(5, len(pairs))
    yield Check(f"each {stated['kind']} of {name}", "as listed", f"{off:.3g} off at most", good)


def _alike(whose: str, stated: Mapping[str, Any], found: Evaluation, pair: tuple[str, str]) -> Iterator[Check]:
    """Yield whether two models answer as alike as stated; agreement may stand beside its fellows."""
    for name, value in found.differences[pair].likeness.items():
        claims = [
            claimed for claimed in (stated.get("likeness", {}).get(name), stated.get(name)) if claimed is not None
        ]
        for claimed in dict.fromkeys(claims):
            yield _figure(f"{name}{whose}", claimed, value)


def _flips(whose: str, stated: Mapping[str, Any], found: Evaluation, name: str) -> Iterator[Check]:
    difference = found.differences[name, NETWORK]
    if "flips" in stated and difference.flips is not None:
        yield _number(f"flips{whose}", stated["flips"], difference.flips, TOLERANCE * difference.flips_of)
        yield _number(f"answers{whose}", stated["flips_of"], difference.flips_of)


def _work(path: Path, model: ModelScores, batches: Iterable[Any]) -> Iterator[Check]:
    call = batch_of(BatchFormat().split(next(iter(batches))).call, 1)
    with open_runner(path) as runner:
        size = runner.count(call)
    yield _number(f"parameters of {path.name}", model["parameters"], size["parameters"])
    yield _number(f"MACs of {path.name}", model["macs"], size["macs"])


def _packages(scores: Scores) -> list[Check]:
    """Return what is installed here in another version than where the run was trained and measured."""
    here, checks = versions(), []
    for when, key in (("trained", "trained_with"), ("measured", "versions")):
        there = scores["provenance"].get(key, {})
        checks += [
            Check(f"{name}, {when} with", str(version), str(here.get(name)), note=True)
            for name, version in there.items()
            if version != here.get(name)
        ]
    return checks


def _same(name: str, stated: Mapping[str, Any], key: str, found: str | None) -> Check:
    """Compare hashes; one that the scores do not state is no claim that holds."""
    claimed = stated.get(key)
    shown = ["none" if value is None else str(value)[:12] for value in (claimed, found)]
    return Check(name, shown[0] if key in stated else "nothing", shown[1], key in stated and claimed == found)


def _figure(name: str, claimed: float, found: float) -> Check:
    """Compare a figure within what another processor may change."""
    limit = TOLERANCE * LOOSE.get(name.partition(" ")[0], 1.0) * max(1.0, abs(claimed))
    return Check(name, f"{claimed:.4g}", f"{found:.4g}", abs(found - claimed) <= limit)


def _number(name: str, claimed: int, found: Any, limit: float = 0.0) -> Check:
    return Check(name, f"{claimed:,}", f"{int(found):,}", abs(int(found) - claimed) <= limit)

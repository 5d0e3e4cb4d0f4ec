"""Verification of a run folder: what its ``scores.json`` claims is recomputed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lighten.delivery.export.proof import MAX_STEP_ERROR, relative_error
from lighten.delivery.folders.provenance import INPUTS, PARTS, versions
from lighten.delivery.folders.run import FLOAT_FILE, open_run, read_json, sha256
from lighten.delivery.folders.student import FIT
from lighten.delivery.measure.latency import batch_of
from lighten.delivery.measure.measure import FILES, predict
from lighten.delivery.measure.scores import (
    SEAL,
    ModelScores,
    Role,
    Scores,
    compare,
    quality,
    read_scores,
    reference_of,
    seal_of,
)
from lighten.delivery.progress import ProgressCallback, Stages, ignore_progress
from lighten.delivery.report import card
from lighten.delivery.report import page as report
from lighten.delivery.runtimes.packages import require
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError
from lighten.training.checkpoint import AtomicCheckpointIO, verify
from lighten.training.lineage import ORIGIN
from lighten.utils.batch import BatchFormat
from lighten.utils.targets import with_parts

TOLERANCE = 0.002
"""How far an accuracy may be from the one claimed: another processor may tip a few samples of a thousand."""


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
    targets = [name for name, found in scores.get("targets", {}).items() if "file" in found and name != "onnx"]
    stages = Stages(on_progress, 3 + sum(model is not None for model in scores["models"].values()) + len(targets))
    stages("hashes and sizes")
    files, sealed = _files(run, scores), _seal(run, scores)
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


def _seal(run: Path, scores: Scores) -> Check:
    claimed, found = str(read_json(run / "scores.json", made_by="lighten measure RUN").get(SEAL)), seal_of(scores)
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
    expected = compare(reference_of(scores)[1], compressed)
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
    for name, render, step in (("report.html", report.render, "report"), ("student/README.md", card.render, "card")):
        if (run / name).exists():
            same = (run / name).read_bytes() == render(run).encode()
            yield Check(name, "of these scores", "so it is" if same else f"another; `lighten {step} {run}`", same)


def _answers(run: Path, scores: Scores, stages: Stages) -> Iterator[Check]:
    from lighten.data import build_data
    from lighten.delivery.folders import model as folder

    config = read_json(run / "student" / "config.json", made_by=f"lighten shrink {run}")
    data: Any = build_data(config["data"]["name"], batch_size=100, **config["data"].get("options", {}))
    data.prepare_data()
    data.setup("test")
    yield _same("data that were measured on", scores["provenance"].get("data", {}), "fingerprint", data.fingerprint)
    yield _same("data that were learned from", scores["provenance"].get("made_of", {}), "data", data.fingerprint)
    answers: dict[Role, np.ndarray] = {}
    for role, model in scores["models"].items():
        if model is not None:
            stages(f"accuracy of {FILES[role]}")
            logits, labels = predict(run / FILES[role], stages.each(data.test_dataloader()))
            answers[role] = logits.argmax(axis=1)
            if role == "compressed":
                in_file = logits
            recall = scores["classes"]["recall"][role]
            yield from _quality(FILES[role], model, recall, answers[role], labels, logits.shape[1])
            yield from _work(run / FILES[role], model, data.test_dataloader())
    stages("parity with student/ in PyTorch")
    network = predict(folder.load(run / "student"), stages.each(data.test_dataloader()))[0]
    in_pytorch = network.argmax(axis=1)
    stated: Any = scores["comparison"]
    if "logit_error" in stated:
        error = relative_error(in_file, network)
        near = abs(error - stated["logit_error"]) <= MAX_STEP_ERROR
        yield Check("logits against PyTorch", f"{stated['logit_error']:.2%} off", f"{error:.2%} off", near)
    reference = answers[reference_of(scores)[0]]
    agreement = float(np.mean(reference == answers["compressed"]))
    yield _share("agreement", stated["agreement"], agreement)
    yield _number("flips", stated["flips"], np.sum(in_pytorch != answers["compressed"]), TOLERANCE * len(labels))
    yield _number("samples", stated["flips_of"], len(labels))
    for target, found in scores.get("targets", {}).items():
        if "file" in found and target != "onnx":
            yield from _target(run, target, found, data.test_dataloader(), answers["compressed"], in_pytorch, stages)


def _quality(
    name: str, model: ModelScores, recall: list[float | None], answers: np.ndarray, labels: np.ndarray, classes: int
) -> Iterator[Check]:
    accuracy, macro_f1, found = quality(answers, labels, classes)
    yield _share(f"accuracy of {name}", model["accuracy"], accuracy)
    yield _share(f"macro-F1 of {name}", model["macro_f1"], macro_f1, 5 * TOLERANCE)  # a rare class's sample weighs more
    samples = np.bincount(labels, minlength=classes)
    pairs = list(zip(recall, found, samples, strict=True))
    off = max((abs(a - b) * n for a, b, n in pairs if a is not None and b is not None), default=0.0)
    good = off <= TOLERANCE * len(labels) and all((a is None) == (b is None) for a, b, _ in pairs)
    yield Check(f"each class of {name}", "as listed", f"{off:.0f} samples off at most", good)


def _work(path: Path, model: ModelScores, batches: Iterable[Any]) -> Iterator[Check]:
    call = batch_of(BatchFormat().split(next(iter(batches))).call, 1)
    with open_runner(path) as runner:
        size = runner.count(call)
    yield _number(f"parameters of {path.name}", model["parameters"], size["parameters"])
    yield _number(f"MACs of {path.name}", model["macs"], size["macs"])


def _target(
    run: Path, target: str, stated: Mapping[str, Any], batches: Any, in_onnx: np.ndarray, in_pytorch: np.ndarray,
    stages: Stages,
) -> Iterator[Check]:  # fmt: skip
    name = stated["file"]
    try:
        require(target)
    except UserError as error:
        yield Check(f"accuracy of {name}", f"{stated['accuracy']:.2%}", str(error), note=True)
        return
    stages(f"accuracy of {name}")
    logits, labels = predict(run / name, stages.each(batches))
    answers = logits.argmax(axis=1)
    yield _share(f"accuracy of {name}", stated["accuracy"], float(np.mean(answers == labels)))
    yield _share(f"agreement of {name}", stated["agreement"], float(np.mean(answers == in_onnx)))
    yield _number(f"flips of {name}", stated["flips"], np.sum(answers != in_pytorch), TOLERANCE * len(answers))


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


def _share(name: str, claimed: float, found: float, limit: float = TOLERANCE) -> Check:
    return Check(name, f"{claimed:.2%}", f"{found:.2%}", abs(found - claimed) <= limit)


def _number(name: str, claimed: int, found: Any, limit: float = 0.0) -> Check:
    return Check(name, f"{claimed:,}", f"{int(found):,}", abs(int(found) - claimed) <= limit)

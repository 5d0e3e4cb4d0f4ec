"""Does a run folder still hold what its ``scores.json`` claims? Everything that can be recomputed is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lighten.delivery.artifacts import open_run, read_json, sha256
from lighten.delivery.measure import FILES, PARTS, predict
from lighten.delivery.scores import Role, Scores, compare, quality, read_scores, reference_of
from lighten.errors import UserError

TOLERANCE = 0.002
"""How far an accuracy may be from the one claimed: another processor may tip a few samples of a thousand."""


@dataclass(frozen=True)
class Check:
    """One claim, and what was found; ``good`` says whether they agree."""

    name: str
    claimed: str
    found: str
    good: bool


def verify_run(run: str | Path, *, say: Callable[[str], None] = lambda stage: None) -> list[Check]:
    """Recompute hashes, sizes, accuracies, parity and ratios of a run and compare them with ``scores.json``.

    Latencies belong to the machine that measured them and are not looked at.

    Args:
        run: the run folder.
        say: called with the name of each stage as it begins.

    Raises:
        UserError: if there are no scores, or a file that they speak of cannot be run.
    """
    run = open_run(run)
    scores = read_scores(run)
    say("hashes and sizes")
    checks = [*_hashes(run, scores), *_ratios(scores)]
    if all(check.good for check in checks):  # what is another file needs no measuring
        checks += _answers(run, scores, say)
    return checks


def failures(checks: list[Check]) -> list[str]:
    """Return a line for every claim that does not hold."""
    return [f"{check.name}: claimed {check.claimed}, found {check.found}" for check in checks if not check.good]


def _hashes(run: Path, scores: Scores) -> list[Check]:
    claimed: dict[str, str] = {
        entry["name"]: entry["sha256"] for entry in scores["provenance"].get("files", {}).values()
    }
    claimed |= scores["provenance"].get("parts", {})
    checks = []
    for name, digest in claimed.items():
        found = sha256(run / name) if (run / name).exists() else "no such file"
        checks.append(Check(f"SHA-256 of {name}", digest[:12], found[:12], found == digest))
    unknown = [name for name in PARTS if (run / name).exists() and name not in claimed]
    checks += [Check(f"SHA-256 of {name}", "nothing", sha256(run / name)[:12], good=False) for name in unknown]
    for role, model in scores["models"].items():
        if model is not None and (run / FILES[role]).exists():
            size = (run / FILES[role]).stat().st_size
            checks.append(Check(f"bytes of {FILES[role]}", f"{model['bytes']:,}", f"{size:,}", size == model["bytes"]))
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


def _answers(run: Path, scores: Scores, say: Callable[[str], None]) -> list[Check]:
    from lighten.data import build_data
    from lighten.delivery import folder

    config = read_json(run / "student" / "config.json", made_by=f"lighten shrink {run}")
    data: Any = build_data(config["data"]["name"], batch_size=100, **config["data"].get("options", {}))
    data.prepare_data()
    data.setup("test")
    stated = scores["provenance"].get("data", {}).get("fingerprint", "")
    checks = [Check("fingerprint of the data", stated[:12], data.fingerprint[:12], stated == data.fingerprint)]
    answers: dict[Role, np.ndarray] = {}
    for role, model in scores["models"].items():
        if model is None:
            continue
        say(f"accuracy of {FILES[role]}")
        logits, labels = predict(run / FILES[role], data.test_dataloader())
        answers[role] = logits.argmax(axis=1)
        accuracy, macro_f1, _ = quality(answers[role], labels, logits.shape[1])
        for name, value, claim in (
            ("accuracy", accuracy, model["accuracy"]),
            ("macro-F1", macro_f1, model["macro_f1"]),
        ):
            limit = TOLERANCE if name == "accuracy" else 5 * TOLERANCE  # a sample of a rare class weighs more
            good = abs(value - claim) <= limit
            checks.append(Check(f"{name} of {FILES[role]}", f"{claim:.2%}", f"{value:.2%}", good))
    say("parity with the fake-quantized student in PyTorch")
    in_pytorch = predict(folder.load(run / "student"), data.test_dataloader())[0].argmax(axis=1)
    flips, claimed = int(np.sum(in_pytorch != answers["compressed"])), scores["comparison"]["flips"]
    checks.append(Check("flips", f"{claimed}", f"{flips}", abs(flips - claimed) <= TOLERANCE * len(in_pytorch)))
    return checks

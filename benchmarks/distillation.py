"""What distillation gives and what a teacher costs: ``python benchmarks/distillation.py [bert] [gain] [cache]``.

All three parts by default; ``--quick`` only shows that they run.

``bert``: ``recipe=distil_bert`` from its start, with TF-IDF and logistic regression on the same glosses beside it.
``gain``: the same student for the same steps, from the same weights, with soft labels and with labels alone; on glosses
and on Fashion-MNIST, over seeds; what onnxruntime makes of the files on the test samples.
``cache``: fits side by side that take turns batch by batch, on labels alone, with the teacher asked at every step, and
with its answers kept from the first epoch on; a step of the later epochs, and all five epochs together.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rows import Row, add_row, command, deviation, width
from step_cost import TakeTurns, Turn, in_turn

from lighten import DistillationModule, build_data, build_model
from lighten.distillation.cache import TeacherCache
from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.optimizer import OptimizerSettings

RECIPES = Path(__file__).parent.parent / "recipes"
UNCOMPRESSED = ["compress.prune.amount=null", "compress.quantize.begin=null"]
QUICK = ["trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "teacher_fit.max_epochs=1"]
PLAIN, ASKED, KEPT = "labels alone", "teacher asked", "answers kept"
EPOCHS = 5


def main() -> None:
    """Measure and print."""
    parts = {"bert": _bert, "gain": _gain, "cache": _cache}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="part", help=", ".join(parts))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="gain: of the student")
    parser.add_argument("--batch", type=int, default=128, help="cache")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"), help="where teachers and runs stay")
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    parser.add_argument("--quick", action="store_true", help="little of everything; the figures mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for part in arguments.parts or parts:
        print(f"\n{part}")
        parts[part](arguments)


def _bert(arguments: argparse.Namespace) -> None:
    begun = time.perf_counter()
    folder = _run(arguments, "distil_bert", ["id=bert"])
    minutes = (time.perf_counter() - begun) / 60
    scores = _scores(folder)
    accuracy, macro_f1 = _tf_idf()
    print(f"\n{minutes:.0f} minutes, where the teacher was not there yet; {arguments.threads} threads\n")
    print("| | accuracy | macro-F1 | file | batch 1 | batch 32 |\n|---|---:|---:|---:|---:|---:|")
    print(f"| TF-IDF, logistic regression | {accuracy:.2%} | {macro_f1:.2%} | | | |")
    for role, m in scores["models"].items():
        times = [m["latency_ms"][batch]["median"] for batch in ("batch_1", "batch_32")]
        print(
            f"| {role} | {m['accuracy']:.2%} | {m['macro_f1']:.2%} | {m['bytes'] / 1e6:.1f} MB | {times[0]:.2f} ms | "
            f"{times[1]:.1f} ms |"
        )
    teacher, small = scores["models"]["teacher"], scores["models"]["compressed"]
    kept = [small[name] / teacher[name] for name in ("accuracy", "macro_f1")]
    print(f"kept: {kept[0]:.1%} of the accuracy, {kept[1]:.1%} of the macro-F1")


def _tf_idf() -> tuple[float, float]:
    """Return accuracy and macro-F1 on the test glosses; the strength is chosen on the validation glosses."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    data: Any = build_data("wordnet_glosses")
    data.setup("fit")
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    train, labels = words.fit_transform(data.train_set.texts), data.train_set.labels.numpy()
    models = [LogisticRegression(C=c, max_iter=300).fit(train, labels) for c in (3, 10, 30)]
    seen, truth = words.transform(data.val_set.texts), data.val_set.labels.numpy()
    best = max(models, key=lambda m: m.score(seen, truth))
    picked, truth = best.predict(words.transform(data.test_set.texts)), data.test_set.labels.numpy()
    return float((picked == truth).mean()), float(f1_score(truth, picked, average="macro"))


def _gain(arguments: argparse.Namespace) -> None:
    epochs = 1 if arguments.quick else arguments.epochs
    for recipe, more in (
        ("distil_cnn", ["student_options.width=16", f"trainer.max_epochs={2 * epochs}"]),
        ("distil_bert", [f"trainer.max_epochs={epochs}"]),
    ):
        teacher = _run(arguments, recipe, ["id=teacher", *more, *UNCOMPRESSED]) / "teacher"
        found: dict[str, list[tuple[float, float]]] = {"labels alone": [], "soft labels": []}
        for seed in range(arguments.seeds):
            for name, weight in (("labels alone", "distil.soft_weight=0.0"), ("soft labels", "distil.preflight=false")):
                settings = [f"teacher_checkpoint={teacher}", f"seed={seed}", weight, "distil.preflight=false"]
                own = f"id={name.replace(' ', '-')}-{seed}"
                folder = _run(arguments, recipe, [own, *more, *UNCOMPRESSED, *dict.fromkeys(settings)])
                small = _scores(folder)["models"]["compressed"]
                found[name].append((small["accuracy"], small["macro_f1"]))
                print(f"  {recipe}, seed {seed}, {name}: {small['accuracy']:.2%}, {small['macro_f1']:.2%}")
        print("\n| " + recipe + " | accuracy | macro-F1 |\n|---|---:|---:|")
        for name, values in found.items():
            print(f"| {name} | {' | '.join(_spread(column) for column in zip(*values, strict=True))} |")
        gains = [
            [a - b for a, b in zip(*pair, strict=True)]
            for pair in zip(found["soft labels"], found["labels alone"], strict=True)
        ]
        print(f"| gain | {' | '.join(_spread(column) for column in zip(*gains, strict=True))} |")
        accuracies = {name: [100 * accuracy for accuracy, _ in values] for name, values in found.items()}
        mean = {name: statistics.mean(values) for name, values in accuracies.items()}
        wide = {name: deviation(values) for name, values in accuracies.items()}
        ours, wide["lighten"] = mean.pop("soft labels"), wide.pop("soft labels")
        claim = f"{recipe}: accuracy with soft labels, equal steps, {arguments.seeds} seeds"
        add_row(arguments.json, Row("gain", claim, "%", ours, mean, wide, "higher", command()))


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


def _run(arguments: argparse.Namespace, recipe: str, settings: Sequence[str]) -> Path:
    quick = QUICK if arguments.quick else []
    (made,) = compose_all([f"recipe={recipe}", f"runs={arguments.runs}", *settings, *quick], RECIPES)
    if (found := Path(made.runs) / recipe / str(made.id) / "scores.json").exists():
        return found.parent
    with contextlib.redirect_stdout(io.StringIO()):
        return run(made)


def _scores(folder: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return scores


def _cache(arguments: argparse.Namespace) -> None:
    times = in_turn(_job, [PLAIN, ASKED, KEPT], arguments)
    steps = len(times[PLAIN]) // EPOCHS
    precision = resolve_precision("auto")
    print(
        f"student and teacher of recipe=distil_cnn, batch {arguments.batch}, {precision}, {arguments.threads} threads, "
        f"{steps} steps an epoch\n"
    )
    print(
        "| | step, epochs 2 to 5 | against labels alone | five epochs | against labels alone |\n"
        "|---|---:|---:|---:|---:|"
    )
    plain = statistics.median(times[PLAIN][steps:]), sum(times[PLAIN])
    for name in times:
        step, total = statistics.median(times[name][steps:]), sum(times[name])
        print(f"| {name} | {1e3 * step:.1f} ms | {step / plain[0]:.3f} | {total:.1f} s | {total / plain[1]:.3f} |")
    later = {name: [1e3 * seconds for seconds in values[steps:]] for name, values in times.items()}
    medians, wide = ({name: f(values) for name, values in later.items()} for f in (statistics.median, width))
    ours, wide["lighten"] = medians.pop(KEPT), wide.pop(KEPT)
    claim = f"distillation step with kept answers, batch {arguments.batch}, epochs 2 to {EPOCHS}"
    add_row(arguments.json, Row("cache", claim, "ms", ours, medians, wide, command=command()))


def _job(name: str, arguments: argparse.Namespace, mine: Any, following: Any, answers: Any) -> None:
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    data: Any = build_data("fashion_mnist", batch_size=arguments.batch, seed=0, augment=False)
    turn = Turn(mine, following)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data.keyed = name == KEPT
        module = DistillationModule(
            _model(32, 1), None if name == PLAIN else _model(40, 2), soft_weight=0.0 if name == PLAIN else 0.9,
            cache=TeacherCache(Path(folder) / "cache") if name == KEPT else None, num_classes=10,
            optimizer=OptimizerSettings("sgd", lr=0.01),
        )  # fmt: skip
        settings = {
            "max_epochs": EPOCHS, "precision": "auto", "accelerator": "cpu", "enable_progress_bar": False,
            "enable_checkpointing": False, "limit_val_batches": 0,
            "limit_train_batches": 4 if arguments.quick else 1.0,
        }  # fmt: skip
        trainer = make_trainer(folder=folder, stage=name, settings=settings, callbacks=[TakeTurns(turn)])
        trainer.fit(module, datamodule=data)
    turn.leave()
    answers.put((name, turn.times))


def _model(width: int, blocks: int) -> torch.nn.Module:
    options = {"num_classes": 10, "input_shape": (1, 28, 28), "stem_stride": 2}
    return build_model("resnet20", width=width, blocks=blocks, **options).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()

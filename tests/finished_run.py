"""A run folder with plausible contents, so that what reads it is tested without a fit."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lighten.delivery.measure.confusion import ConfusionTable
from lighten.delivery.measure.scores import describe_task
from lighten.pruning.plan import Cut, GroupPlan, Plan, Slot
from lighten.tasks import task_of

GROUPS = [
    ("stem", 16, 10),
    *[(f"layer{s}.{b}.conv1", 16 * 2 ** (s - 1), 9 * 2 ** (s - 1)) for s in (1, 2, 3) for b in (0, 1, 2)],
    ("layer2.residual", 32, 20),
    ("layer3.residual", 64, 39),
]
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]

MADE_OF = {"recipe": "1ec1" * 16, "teacher": "7eac" * 16, "data": "ab12" * 16, "packages": "9ac4" * 16}


def model_scores(accuracy: float, size: int, ms: float, **changes: Any) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.0013,
        "parameters": size // 4,
        "macs": size * 33,
        "bytes": size,
        "runtime": "onnxruntime",
        "threads": 1,
        "latency_ms": {
            "batch_1": {"median": ms, "p90": ms * 1.13},
            "batch_32": {"median": ms * 26.4, "p90": ms * 29.1},
        },
    } | changes


def make_scores(*, teacher: bool = True) -> dict[str, Any]:
    """A ``scores.json`` whose comparison follows from its models."""
    models: dict[str, Any] = {
        "teacher": model_scores(0.9175, 2_861_402, 5.213) if teacher else None,
        "student": model_scores(0.9105, 1_093_120, 2.087),
        "compressed": model_scores(0.909, 121_377, 0.6214, parameters=98_111),
    }
    reference, small = models["teacher"] or models["student"], models["compressed"]
    speedup = {
        f"speedup_{batch}": reference["latency_ms"][batch]["median"] / small["latency_ms"][batch]["median"]
        for batch in ("batch_1", "batch_32")
    }
    recall = [0.862, 0.985, 0.871, 0.912, 0.861, 0.978, 0.741, 0.964, 0.982, 0.957]
    return {
        "schema": 2,
        "recipe": "distil_cnn",
        "task": describe_task(task_of("classification")),
        "models": models,
        "comparison": {
            "retention": small["accuracy"] / reference["accuracy"],
            "size_ratio": reference["bytes"] / small["bytes"],
            "mac_ratio": reference["macs"] / small["macs"],
            "parameter_ratio": reference["parameters"] / small["parameters"],
            **speedup,
            "likeness": {"agreement": 0.9415, "kl": 0.0213},
            "agreement": 0.9415,
            "flips": 2,
            "flips_of": 2000,
        },
        "parts": {
            "kind": "class",
            "metric": "recall",
            "label": "Found",
            "format": "percent",
            "lower_is_better": False,
            "names": list(CLASSES),
            "values": {
                "teacher": recall if teacher else None,
                "student": [r - 0.004 for r in recall],
                "compressed": [r - 0.003 - 0.011 * (i % 3) for i, r in enumerate(recall)],
            },
        },
        "provenance": {
            "measured_at": "2026-11-24T09:12:44+00:00",
            "made_of": MADE_OF | ({} if teacher else {"teacher": None}),
            "files": {
                role: {"name": name, "sha256": f"{i}fb2c4d1" * 8}
                for i, (role, name) in enumerate(
                    [("teacher", "teacher.onnx"), ("student", "dense.onnx"), ("compressed", "student.onnx")]
                )
                if teacher or role != "teacher"
            },
            "data": {
                "name": "fashion_mnist",
                "split": "test",
                "samples": 2000,
                "licence": "Fashion-MNIST: MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
                "fingerprint": "ab12" * 16,
            },
            "machine": {"processor": "AMD EPYC 7B13", "cores": 2, "system": "Linux-6.1"},
            "versions": {"python": "3.11.2", "lighten": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.32.0"},
        },
    }


def schema_1(scores: dict[str, Any]) -> dict[str, Any]:
    """The same scores as the first schema had them, all of classes."""
    old = {name: value for name, value in scores.items() if name not in ("task", "parts")}
    comparison = {name: value for name, value in scores["comparison"].items() if name != "likeness"}
    classes = {"names": scores["parts"]["names"], "recall": scores["parts"]["values"]}
    return {**old, "schema": 1, "comparison": comparison, "classes": classes}


def write_confusion(run: Path, names: Sequence[str], predicted: dict[str, Any], labels: Any) -> Path:
    """Write a confusion table of class indices, which is counted from logits."""
    table = ConfusionTable()
    rows = {name: torch.eye(len(names))[torch.as_tensor(answers)] for name, answers in predicted.items()}
    table(torch.as_tensor(labels), torch.as_tensor(labels), {name: (row, row) for name, row in rows.items()})
    return table.write(run, names, list(predicted))


def make_history(steps: int = 1200, epochs: int = 30) -> list[dict[str, Any]]:
    """Rows of a fit that prunes from 0.1 to 0.6, quantizes from 0.7 and freezes its ranges at 0.9."""
    rows: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        t = step / steps
        ramp = 1 - (1 - min(max((t - 0.1) / 0.5, 0), 1)) ** 3
        noise = 0.11 * math.sin(step * 1.7) + 0.07 * math.sin(step * 0.31)
        row: dict[str, Any] = {"step": step, "epoch": int(t * epochs), "progress": t, "time": step * 0.31}
        row |= {
            "train/loss": 0.35 + 1.9 * math.exp(-6 * t) + 0.09 * ramp + noise * (0.6 - 0.4 * t),
            "distil/soft_labels": 0.3 + 1.7 * math.exp(-6.5 * t) + noise * (0.5 - 0.35 * t),
            "distil/cross_entropy": 0.29 + 2.1 * math.exp(-5 * t) + noise * (0.8 - 0.5 * t),
            "prune/sparsity": round(0.42 * ramp * 50) / 50,
            "prune/amount": 0.42 * ramp,
            "quantize/enabled": float(t >= 0.7),
            "quantize/frozen": float(t >= 0.9),
            "lr": 0.1 * (1 + math.cos(math.pi * t)) / 2,
            "distil/share/soft_labels": 0.6 + 0.2 * t,
            "distil/share/cross_entropy": 0.4 - 0.2 * t,
            "prune/macs": 0.6 * ramp,
            "prune/width": 1.0 - 0.5 * int(5 * ramp) / 5,
            "system/step_ms": 40.0 - 20.0 * ramp,
            "system/samples_per_second": 3200.0 + 3200.0 * ramp,
            "system/cpu": 48 + 10 * noise,
            "system/proc.memory.rssMB": 812.0 + 40 * t,
            "system/memory_percent": 14.2,
        }
        if 0.1 <= t <= 0.6 and step // 10 % max(1, steps // 500) == 0:
            row |= {f"prune/kept/{name}": 1 - ramp * (before - after) / before for name, before, after in GROUPS}
        if t >= 0.7 and (step % (steps // epochs) == 0):
            row |= {f"quantize/low/{name}.output": -0.1 * place - t for place, (name, *_) in enumerate(GROUPS)}
            row |= {f"quantize/high/{name}.output": 1.0 + place + t for place, (name, *_) in enumerate(GROUPS)}
        if step % (steps // epochs) == 0:
            dip = 0.035 * math.exp(-(((t - 0.45) / 0.13) ** 2)) + 0.008 * (0.7 <= t < 0.76)
            student = 0.905 - 0.22 * math.exp(-7 * t) - dip + 0.004 * math.sin(step)
            row |= {"student/accuracy": student, "teacher/accuracy": 0.9165, "gap/accuracy": 0.9165 - student}
            row |= {"gap/retention": student / 0.9165, "gap/agreement": student - 0.01, "gap/kl": 0.9165 - student}
            for name, of_student, of_teacher in (
                ("macro_f1", student - 0.004, 0.9152), ("loss", 1.2 - student, 0.241),
                ("worst_class", student - 0.19, 0.741), ("ece", 0.03 + 0.02 * t, 0.021),
            ):  # fmt: skip
                row |= {f"student/{name}": of_student, f"teacher/{name}": of_teacher}
            row |= {f"gap/{name}": row[f"teacher/{name}"] - row[f"student/{name}"] for name in ("macro_f1", "loss")}
        rows.append(row)
    return rows


def make_group(name: str, before: int, after: int, *, score: str = "fpgm", probed: bool = False) -> GroupPlan:
    """A group with norms between 0.2 and 1.8; magnitude takes the lowest, FPGM those around the middle."""
    norms = [1.0 + 0.8 * math.sin(2.4 * i + before) for i in range(before)]
    scores = norms if score == "magnitude" else [abs(norm - 1.0) for norm in norms]
    ranked = sorted(range(before), key=lambda i: -scores[i])
    whys = {"magnitude": "norms widely spread (0.57 of their mean), the smallest near zero (0.20)", "fpgm": ""}
    steepness = 0.004 * before / 16 * (9 if name == "stem" else 1)
    curve = [(0.0, 0.0), *((share, steepness * math.expm1(6 * share)) for share in (0.25, 0.5, 0.75, 0.875))]
    return GroupPlan(
        name, (name,), tuple(sorted(ranked[:after])), tuple(scores), tuple(norms), score, whys[score],
        macs=1 / 16, curve=tuple(curve) if probed else (),
    )  # fmt: skip


def make_plan(groups: Sequence[GroupPlan] | None = None, **settings: Any) -> Plan:
    """The plan of ``GROUPS``, or of others; ``settings`` beside its own."""
    groups = [make_group(*group) for group in GROUPS] if groups is None else groups
    cuts = [Cut(g.width_before, g.removed, (Slot(f"{g.name}.weight", 0, "filter"),)) for g in groups]
    asked = {"amount": 0.42, "score": "fpgm", "scope": "uniform", "target": "channels", "align": 1, "strength": 1.0}
    return Plan(
        groups=tuple(groups),
        cuts=tuple(cuts),
        frozen={"head": "is the network's output"},
        widths={g.name: (g.width_before, g.width_after) for g in groups},
        settings=asked | settings,
        example={"args": [], "kwargs": {}},
        saved={"macs": 0.634, "parameters": 0.651},
    )


def make_layers(stages: int = 3, blocks: int = 3) -> list[dict[str, Any]]:
    """Rows of ``compression.json`` for a ResNet: two convolutions and an add a block, the first layer in float."""

    def row(name: str, kind: str, bits: int | None, note: str, *, known: bool = True) -> dict[str, Any]:
        spread = 1.0 + sum(map(ord, name)) % 17
        given, made = ([-0.5 * spread, spread], [0.0, 1.3 * spread]) if known else (None, None)
        return {"name": name, "kind": kind, "weight_bits": bits, "input": given, "output": made, "note": note}

    rows = [row("stem.0", "Conv2d", None, "floating point: excluded by 'stem.*'", known=False)]
    for stage in range(1, stages + 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            rows += [
                row(f"{name}.conv1", "Conv2d", 8, "with BatchNorm2d and ReLU"),
                row(f"{name}.conv2", "Conv2d", 8, "with BatchNorm2d"),
                row(f"{name}:add0", "add", None, "with ReLU"),
            ]
    return [*rows, row("head", "Linear", 8, "")]


def make_compression(layers: list[dict[str, Any]] | None = None, **settings: Any) -> dict[str, Any]:
    """A ``compression.json`` of a network that was quantized in training; ``settings`` beside its own."""
    asked = {"ranges": "moving_average", "weight_bits": 8, "exclude": ["stem.*"]}
    layers = make_layers() if layers is None else layers
    return {"schema": 1, "plan": None, "quantization": asked | settings, "layers": layers}


def make_targets() -> dict[str, Any]:
    """The ``targets`` of ``scores.json``: three that were measured, one whose package is not there."""

    def target(file: str, runtime: str, size: int, accuracy: float, agreement: float, flips: int, ms: float) -> Any:
        latency = {
            "batch_1": {"median": ms, "p90": ms * 1.13},
            "batch_32": {"median": ms * 26.4, "p90": ms * 29.1},
        }
        return {
            "file": file, "runtime": runtime, "bytes": size, "accuracy": accuracy, "agreement": agreement,
            "flips": flips, "flips_of": 2000, "latency_ms": latency,
        }  # fmt: skip

    return {
        "onnx": target("student.onnx", "onnxruntime", 121_377, 0.909, 1.0, 2, 0.6214),
        "openvino": target("student.xml", "openvino", 118_204, 0.9085, 0.9995, 3, 0.5127),
        "litert": target("student.tflite", "litert", 109_880, 0.9095, 0.9975, 7, 0.8316),
        "executorch": {"missing": "pip install 'lighten[executorch]'"},
    }


def make_gate(**changes: Any) -> dict[str, Any]:
    """The ``gate`` of ``scores.json``: an int8 file that is smaller, but slower at batch 32."""
    return {
        "runtime": "onnxruntime",
        "float_bytes": 402_118,
        "int8_bytes": 121_377,
        "float_latency_ms": {"batch_1": {"median": 1.118, "p90": 1.31}, "batch_32": {"median": 14.1, "p90": 15.2}},
        "int8_latency_ms": {"batch_1": {"median": 0.6214, "p90": 0.7}, "batch_32": {"median": 16.4, "p90": 18.1}},
        "size_ratio": 3.313,
        "speedup_batch_1": 1.799,
        "speedup_batch_32": 0.8598,
        "warnings": ["int8 is 1.2× slower than float32 at batch 32 in onnxruntime; deploy the float file there"],
    } | changes


def make_sensitivity(count: int = 31, kept: Sequence[str] = ("float32", "float16")) -> dict[str, Any]:
    """A ``sensitivity.json``, errors falling over five powers of ten; the first layers are left out as ``kept``."""
    names = ["stem.0", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in range(9) for c in (1, 2))]
    return {
        "schema": 1,
        "metric": "accuracy",
        "samples": 512,
        "baseline": 0.9105,
        "tolerated": 0.01,
        "predicted": 0.0042,
        "seconds": 34.2,
        "layers": [
            {
                "name": name,
                "kind": "Conv2d",
                "drop": 0.021 * 0.7**i,
                "error": 0.34 * 0.68**i,
                "kept": kept[i] if i < len(kept) else None,
            }
            for i, name in enumerate(names[:count])
        ],
    }


RECIPE = """\
# A ResNet-20 learns from a larger one, loses 42 % of its filters and ends as int8, in one fit.
# python train.py recipe=distil_cnn
data: fashion_mnist
teacher: resnet20
student: resnet20
distil:
  temperature: 4.0
  soft_weight: 0.9
compress:
  prune: {amount: 0.42, score: fpgm, begin: 0.1, end: 0.6}
  quantize: {begin: 0.7, freeze: 0.9}
trainer:
  max_epochs: 30
"""


def write_run(
    run: Path, *, teacher: bool = True, plan: bool = True, scores: bool = True, quantized: bool = False
) -> Path:
    """Write a run folder; ``quantized`` adds all that is told of int8: layers, targets, gate and sensitivity."""
    (run / "student").mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    config = {
        "schema": 1,
        "model": {
            "name": "resnet20",
            "num_classes": 10,
            "input_shape": [1, 28, 28],
            "options": {"width": 16},
        },
        "data": {"name": "fashion_mnist", "options": {}},
        "classes": CLASSES,
        "mean": [0.286],
        "std": [0.353],
        "training": {"seed": 0},
        "made_of": MADE_OF,
    }
    (run / "student" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_history()), encoding="utf-8")
    if plan:
        (run / "plan.json").write_text(make_plan().to_json(), encoding="utf-8")
    if scores:
        more = {"targets": make_targets(), "gate": make_gate()} if quantized else {}
        (run / "scores.json").write_text(json.dumps(make_scores(teacher=teacher) | more), encoding="utf-8")
    if quantized:
        compression = make_compression() | {"plan": json.loads(make_plan().to_json()) if plan else None}
        (run / "student" / "compression.json").write_text(json.dumps(compression), encoding="utf-8")
        (run / "sensitivity.json").write_text(json.dumps(make_sensitivity()), encoding="utf-8")
    return run

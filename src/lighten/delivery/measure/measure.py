"""Measurement of models on data, and of a whole run into ``scores.json``."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lighten.delivery.export.proof import doubt
from lighten.delivery.folders.provenance import provenance
from lighten.delivery.folders.run import FLOAT_FILE, open_run, read_json, recipe_name
from lighten.delivery.folders.student import FIT
from lighten.delivery.measure.evaluate import Evaluation, evaluate
from lighten.delivery.measure.exhibits import exhibit_of, write_pictures
from lighten.delivery.measure.int8_check import int8_vs_float
from lighten.delivery.measure.latency import Latency, batch_of, interleaved_latency
from lighten.delivery.measure.scores import (
    ROLES,
    SCHEMA,
    ModelScores,
    Role,
    Scores,
    compare,
    describe_task,
    write_scores,
)
from lighten.delivery.progress import ProgressCallback, Stages, ignore_progress
from lighten.delivery.runtimes.packages import require
from lighten.delivery.runtimes.runners import Model, Runner, Size, open_runner
from lighten.errors import UserError
from lighten.tasks import task_of
from lighten.tasks.task import Task
from lighten.utils.batch import BatchFormat, Roles
from lighten.utils.inputs import Call
from lighten.utils.targets import TARGETS

FILES: dict[Role, str] = {"teacher": "teacher.onnx", "student": "dense.onnx", "compressed": "student.onnx"}
"""Which file of a run folder each role of ``scores.json`` is measured on."""

BATCH_SIZES = (1, 32)
NETWORK = "student/ in PyTorch"
"""What the fake-quantized network is called among the models that are evaluated."""


def measure(
    path_or_model: Model,
    dataloader: Iterable[Any],
    *,
    threads: int = 1,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    batch: Roles | None = None,
    network: nn.Module | None = None,
    task: str | Task = "classification",
) -> ModelScores:
    """Measure one model: quality on all of ``dataloader``, size, and latency on its first samples.

    Args:
        path_or_model: a path to an ``.onnx``, ``.xml`` (OpenVINO), ``.tflite``, ``.pte`` or ``.pt2`` file, run in its
            runtime on the CPU, or a torch module, run in PyTorch on its own device.
        dataloader: batches of ``(inputs, labels)``, or mappings with ``labels``; read once.
        threads: number of threads for each call.
        batch_sizes: the batch sizes for latency.
        batch: roles of the parts of other batches, such as ``("input", "input", "label")`` or ``{"target": "label"}``.
        network: the module that a file was made from; the outputs of both are compared.
        task: by name, or an object with settings.

    Returns:
        The task's metrics by name (for classes ``accuracy``, ``macro_f1``, …), parameters, MACs of one sample, bytes (a
        module's in memory), runtime, threads and ``latency_ms[f"batch_{size}"]`` with median and 90th percentile; with
        ``network`` also ``logit_error``, the Euclidean distance of the outputs relative to their norm. If that is
        more than a few quantization steps, a warning says so.

    Raises:
        UserError: if the file cannot be read, or the data is empty, unlabelled or does not fit the model.

    Example:
        >>> import torch
        >>> scores = measure(torch.nn.Linear(4, 2), [(torch.ones(3, 4), torch.zeros(3, dtype=torch.long))])
        >>> scores["parameters"], scores["macs"], sorted(scores["latency_ms"])
        (10, 8, ['batch_1', 'batch_32'])
    """
    task, form, batches = task_of(task), BatchFormat(batch), iter(dataloader)
    with ExitStack() as stack:
        runner = stack.enter_context(open_runner(path_or_model, threads=threads))
        models = {"model": runner}
        if network is not None:
            models["network"] = stack.enter_context(open_runner(network, threads=threads))
        first = list(islice(batches, 1))
        pairs = [("model", "network")] if network is not None else []
        found = evaluate(task, models, chain(first, batches), pairs=pairs, form=form)
        call = form.split(first[0]).call
        latency = interleaved_latency({"model": runner}, batches_of(call, batch_sizes))["model"]
        scores = model_scores(runner, runner.count(batch_of(call, 1)), found.metrics["model"], latency)
        for difference in found.differences.values():
            scores["logit_error"] = difference.error
            line = doubt(runner.name, difference.error)
            if line is not None:
                warnings.warn(line, stacklevel=2)
        return scores


def predict(
    path_or_model: Model,
    dataloader: Iterable[Any],
    *,
    threads: int = 1,
    batch: Roles | None = None,
    task: str | Task = "classification",
) -> tuple[np.ndarray, np.ndarray]:
    """Return answers, such as logits (samples, classes), and labels over all of ``dataloader``.

    Raises:
        UserError: as ``measure``.
    """
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    with open_runner(path_or_model, threads=threads) as runner:
        evaluate(
            task_of(task), {"model": runner}, dataloader, form=BatchFormat(batch),
            listeners=[lambda labels, _, found: kept.append((found["model"][0].numpy(), labels.numpy()))],
        )  # fmt: skip
    answers, labels = zip(*kept, strict=True)
    return np.concatenate(answers), np.concatenate(labels)


def measure_run(run: str | Path, *, threads: int = 1, on_progress: ProgressCallback = ignore_progress) -> Scores:
    """Measure the files of a run folder on its test split and write ``scores.json`` and what the report shows.

    Reads ``student.onnx``, ``dense.onnx``, ``teacher.onnx`` where there was a teacher, and ``student/``,
    whose fake-quantized PyTorch model is what flips are counted against.

    Args:
        run: the run folder.
        threads: how many threads each model may use.
        on_progress: called with the name of each stage and the share of all work that is done.

    Raises:
        UserError: if a file is missing or cannot be read.
    """
    from lighten.delivery.folders import model as folder

    run = open_run(run)
    settings = read_json(run / FIT, made_by="lighten train recipe=…") if (run / FIT).exists() else {}
    files = {role: run / name for role, name in FILES.items() if role != "teacher" or (run / name).exists()}
    config = read_json(run / "student" / "config.json", made_by=f"lighten shrink {run}")
    targets = [] if settings.get("targets", ["onnx"]) == ["onnx"] else settings["targets"]
    stages = Stages(on_progress, 5 if targets else 4)
    stages("test data")
    data = load_test_data(config)
    task, loader, names = task_of(config.get("task", "classification")), data.test_dataloader(), list(config["classes"])
    reference: Role = "teacher" if "teacher" in files else "student"
    with ExitStack() as stack:
        runners: dict[str, Runner] = {
            role: stack.enter_context(open_runner(path, threads=threads)) for role, path in files.items()
        }
        runners[NETWORK] = stack.enter_context(open_runner(folder.load(run / "student"), threads=threads))
        also, missing = _target_runners(run, targets, runners["compressed"], threads, stack)
        pairs = [(str(reference), "compressed"), ("compressed", NETWORK)]
        pairs += [(name, other) for name in also for other in ("compressed", NETWORK)]
        stages("answers on the test split")
        exhibit = exhibit_of(task)
        found = evaluate(
            task, {**runners, **also}, stages.each(loader), pairs=pairs, names=names,
            listeners=[exhibit] if exhibit else [],
        )  # fmt: skip
        call = _first_call(loader)
        stages("latency, models in turn")
        in_float = run / FLOAT_FILE
        timed: dict[str, Runner] = {str(role): runners[role] for role in files}
        if in_float.exists():
            timed["float"] = stack.enter_context(open_runner(in_float, threads=threads))
        latency = interleaved_latency(timed, batches_of(call, BATCH_SIZES), tell=stages.part)
        models: dict[Role, ModelScores | None] = {"teacher": None}
        for role in files:
            size = runners[role].count(batch_of(call, 1))
            models[role] = model_scores(runners[role], size, _reported(task, found, role), latency[role])
        scores = _scores(run, task, models, reference, found)
        if "float" in timed:
            compared = {"int8": latency["compressed"], "float": latency["float"]}
            runtime = runners["compressed"].runtime
            scores["gate"] = int8_vs_float(files["compressed"], in_float, compared, runtime=runtime)
            line = doubt(files["compressed"].name, scores["comparison"]["logit_error"])
            scores["gate"]["warnings"] += [line] if line is not None else []
        if targets:
            stages("latency, runtimes in turn")
            scores["targets"] = _targets(task, targets, also, missing, found, call, stages)
        shown = [role for role in ROLES if role in files]
        if exhibit:
            exhibit.write(run, names, shown)
        elif task.exhibit == "pictures":
            stages("pictures")
            by_role, worst = {str(role): runners[role] for role in shown}, found.sample_scores["compressed"]
            write_pictures(run, task, by_role, loader, worst, names, restorer(config))
    scores["parts"] = _parts(found, [str(role) for role in ROLES])
    scores["provenance"] = provenance(run, files, data, config, found.samples, call)
    write_scores(run, scores)
    return scores


def load_test_data(config: Mapping[str, Any]) -> Any:
    """Return the data module that a model folder's ``config.json`` names, set up for testing."""
    from lighten.data import build_data

    data: Any = build_data(config["data"]["name"], batch_size=100, **config["data"].get("options", {}))
    data.prepare_data()
    data.setup("test")
    return data


def restorer(config: Mapping[str, Any]) -> Any:
    """Return what undoes the normalisation of inputs (channels, height, width)."""
    mean, std = (torch.tensor([float(v) for v in config.get(key) or ()]).view(-1, 1, 1) for key in ("mean", "std"))
    return lambda values: values * std + mean if len(mean) else values


def _target_runners(
    run: Path, targets: Sequence[str], onnx: Runner, threads: int, stack: ExitStack
) -> tuple[dict[str, Runner], dict[str, Any]]:
    """Return a runner for each target's file, and a line for each that cannot be run."""
    runners: dict[str, Runner] = {}
    missing: dict[str, Any] = {}
    for target in targets:
        try:
            require(target)
            path = run / f"student{TARGETS[target].suffix}"
            same = target == "onnx" and Path(onnx.name) == path
            runners[target] = onnx if same else stack.enter_context(open_runner(path, threads=threads))
        except UserError as error:
            missing[target] = {"missing": str(error)}
    return runners, missing


def _targets(
    task: Task, targets: Sequence[str], runners: Mapping[str, Runner], missing: Mapping[str, Any], found: Evaluation,
    call: Call, stages: Stages,
) -> dict[str, Any]:  # fmt: skip
    """Return what each runtime makes of the student's file; latencies are taken in turn."""
    latency = interleaved_latency(runners, batches_of(call, BATCH_SIZES), tell=stages.part)
    measured = {
        target: {
            "file": Path(runner.name).name,
            "runtime": runner.runtime,
            "bytes": runner.count(batch_of(call, 1))["bytes"],
            **_reported(task, found, target),
            **_likeness(found.differences[target, "compressed"].likeness),
            **_flips(found, (target, NETWORK)),
            "latency_ms": latency[target],
        }
        for target, runner in runners.items()
    }
    return {target: missing.get(target) or measured[target] for target in targets}


def _reported(task: Task, found: Evaluation, name: str) -> dict[str, float]:
    """Return the metrics of a model that scores speak of.

    Raises:
        UserError: if there are too few samples for one of them.
    """
    lacking = next((metric for metric in task.reported if metric not in found.metrics[name]), None)
    if lacking is not None:
        raise UserError(f"{name}: {found.samples} test samples are too few for {lacking}; measure on more")
    return {metric: found.metrics[name][metric] for metric in task.reported}


def _likeness(likeness: Mapping[str, float]) -> dict[str, Any]:
    """Return likeness by name, and agreement for itself, where there is one."""
    return {"likeness": dict(likeness), **{k: v for k, v in likeness.items() if k == "agreement"}}


def _flips(found: Evaluation, pair: tuple[str, str]) -> dict[str, int]:
    difference = found.differences[pair]
    return {} if difference.flips is None else {"flips": difference.flips, "flips_of": difference.flips_of}


def _parts(found: Evaluation, roles: Sequence[str]) -> dict[str, Any]:
    """Return quality part by part of each role; empty for a task without parts."""
    scores = found.part_scores
    if scores is None:
        return {}
    values = {role: found.parts[role][1] if role in found.parts else None for role in roles}
    about = {"kind": scores.kind, "metric": scores.metric, **scores.meaning._asdict()}
    return {**about, "names": found.parts["compressed"][0], "values": values}


def _first_call(dataloader: Iterable[Any]) -> Call:
    return BatchFormat().split(next(iter(dataloader))).call


def batches_of(call: Call, sizes: Iterable[int]) -> dict[str, Call]:
    """Return calls of several sizes, as latencies are named after them."""
    return {f"batch_{size}": batch_of(call, size) for size in sizes}


def model_scores(runner: Runner, size: Size, metrics: Mapping[str, float], latency: dict[str, Latency]) -> ModelScores:
    """Return what is measured of one model, as ``scores.json`` has it."""
    return {
        **metrics,
        "parameters": size["parameters"],
        "macs": size["macs"],
        "bytes": size["bytes"],
        "runtime": runner.runtime,
        "threads": runner.threads,
        "latency_ms": latency,
    }


def _scores(
    run: Path, task: Task, models: dict[Role, ModelScores | None], reference: Role, found: Evaluation
) -> Scores:
    compared, compressed = models[reference], models["compressed"]
    assert compared is not None
    assert compressed is not None
    ratios = compare(task, compared, compressed)
    return {
        "schema": SCHEMA,
        "recipe": recipe_name(run),
        "task": describe_task(task),
        "models": models,
        "comparison": {
            "retention": ratios["retention"],
            "size_ratio": ratios["size_ratio"],
            "mac_ratio": ratios["mac_ratio"],
            "parameter_ratio": ratios["parameter_ratio"],
            "speedup_batch_1": ratios["speedup_batch_1"],
            "speedup_batch_32": ratios["speedup_batch_32"],
            **_likeness(found.differences[reference, "compressed"].likeness),  # type: ignore[typeddict-item]
            **_flips(found, ("compressed", NETWORK)),
            "logit_error": found.differences["compressed", NETWORK].error,
        },
        "parts": {},
        "provenance": {},
    }

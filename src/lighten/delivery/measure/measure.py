"""Measurement of models on data, and of a whole run into ``scores.json``."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from lighten.delivery.export.proof import doubt, relative_error
from lighten.delivery.folders.provenance import provenance
from lighten.delivery.folders.run import FLOAT_FILE, open_run, read_json, recipe_name
from lighten.delivery.folders.student import FIT
from lighten.delivery.measure.confusion import write_confusion
from lighten.delivery.measure.int8_check import int8_vs_float
from lighten.delivery.measure.latency import Latency, batch_of, interleaved_latency
from lighten.delivery.measure.scores import SCHEMA, ModelScores, Role, Scores, compare, quality, write_scores
from lighten.delivery.progress import ProgressCallback, Stages, ignore_progress
from lighten.delivery.runtimes.packages import require
from lighten.delivery.runtimes.runners import Model, Runner, Size, open_runner
from lighten.errors import UserError
from lighten.utils.batch import BatchFormat, Roles
from lighten.utils.inputs import Call
from lighten.utils.targets import TARGETS

FILES: dict[Role, str] = {"teacher": "teacher.onnx", "student": "dense.onnx", "compressed": "student.onnx"}
"""Which file of a run folder each role of ``scores.json`` is measured on."""

BATCH_SIZES = (1, 32)


def measure(
    path_or_model: Model,
    dataloader: Iterable[Any],
    *,
    threads: int = 1,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    batch: Roles | None = None,
    network: nn.Module | None = None,
) -> ModelScores:
    """Measure one model: quality on all of ``dataloader``, size, and latency on its first samples.

    Args:
        path_or_model: a path to an ``.onnx``, ``.xml`` (OpenVINO), ``.tflite``, ``.pte`` or ``.pt2`` file, run in its
            runtime on the CPU, or a torch module, run in PyTorch where it stands.
        dataloader: batches of ``(inputs, labels)``, or mappings with ``labels``; read once. One label a sample.
        threads: how many threads each call may use.
        batch_sizes: the sizes that latency is measured at.
        batch: what the parts of other batches are, such as ``("input", "input", "label")`` or ``{"target": "label"}``.
        network: the module that a file was made of; the file's logits are compared with its logits in PyTorch.

    Returns:
        Accuracy and macro-F1 in [0, 1], parameters, MACs of one sample, bytes (a module's in memory),
        runtime, threads and ``latency_ms[f"batch_{size}"]`` with median and 90th percentile; with ``network`` also
        ``logit_error``, the Euclidean distance of the logits relative to their norm. Where that is more than a few
        quantization steps, a warning says so.

    Raises:
        UserError: if the file cannot be read, or the data is empty, unlabelled or does not fit the model.

    Example:
        >>> import torch
        >>> scores = measure(torch.nn.Linear(4, 2), [(torch.ones(3, 4), torch.zeros(3, dtype=torch.long))])
        >>> scores["parameters"], scores["macs"], sorted(scores["latency_ms"])
        (10, 8, ['batch_1', 'batch_32'])
    """
    with open_runner(path_or_model, threads=threads) as runner:
        form, batches = BatchFormat(batch), iter(dataloader)
        first, in_pytorch = list(islice(batches, 1)), []

        def seen(all_batches: Iterable[Any]) -> Iterator[Any]:
            with nullcontext() if network is None else open_runner(network, threads=threads) as beside:
                for each in all_batches:
                    if beside is not None:
                        in_pytorch.append(beside.run(beside.feed(form.labelled(each).call)))
                    yield each

        logits, labels = _predict(runner, seen(chain(first, batches)), form)
        call = form.split(first[0]).call
        latency = interleaved_latency({"model": runner}, _batches(call, batch_sizes))["model"]
        accuracy, macro_f1, _ = quality(logits.argmax(axis=1), labels, logits.shape[1])
        scores = _model_scores(runner, runner.count(batch_of(call, 1)), accuracy, macro_f1, latency)
        if in_pytorch:
            scores["logit_error"] = relative_error(logits, np.concatenate(in_pytorch))
            line = doubt(runner.name, scores["logit_error"])
            if line is not None:
                warnings.warn(line, stacklevel=2)
        return scores


def predict(
    path_or_model: Model, dataloader: Iterable[Any], *, threads: int = 1, batch: Roles | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, shape (samples, classes), and labels, shape (samples,), over all of ``dataloader``.

    Raises:
        UserError: as ``measure``.
    """
    with open_runner(path_or_model, threads=threads) as runner:
        return _predict(runner, dataloader, BatchFormat(batch))


def measure_run(run: str | Path, *, threads: int = 1, on_progress: ProgressCallback = ignore_progress) -> Scores:
    """Measure the files of a run folder on its test split and write ``scores.json``.

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
    stages = Stages(on_progress, len(files) + len(targets) + (4 if targets else 3))
    stages("test data")
    data = _test_data(config)
    loader = data.test_dataloader()
    with ExitStack() as stack:
        runners = {role: stack.enter_context(open_runner(path, threads=threads)) for role, path in files.items()}
        predicted: dict[Role, np.ndarray] = {}
        for role, runner in runners.items():
            stages(f"accuracy of {files[role].name}")
            logits, labels = _predict(runner, stages.each(loader))
            predicted[role] = logits.argmax(axis=1)
            if role == "compressed":
                in_file = logits
        call = _first_call(loader)
        stages("latency, models in turn")
        in_float = run / FLOAT_FILE
        float_model = stack.enter_context(open_runner(in_float, threads=threads)) if in_float.exists() else None
        timed: dict[str, Runner] = {str(role): runner for role, runner in runners.items()}
        if float_model is not None:
            timed["float"] = float_model
        latency = interleaved_latency(timed, _batches(call, BATCH_SIZES), tell=stages.part)
        sizes = {role: runner.count(batch_of(call, 1)) for role, runner in runners.items()}
        stages("accuracy of student/ in PyTorch")
        network = predict(folder.load(run / "student"), stages.each(loader), threads=threads)[0]
        in_pytorch = network.argmax(axis=1)
    classes = list(config["classes"])
    models: dict[Role, ModelScores | None] = {"teacher": None}
    recall: dict[str, list[float | None] | None] = {"teacher": None}
    for role, runner in runners.items():
        accuracy, macro_f1, recall[role] = quality(predicted[role], labels, len(classes))
        models[role] = _model_scores(runner, sizes[role], accuracy, macro_f1, latency[role])
    reference: Role = "teacher" if "teacher" in runners else "student"
    scores = _scores(run, models, reference, predicted, in_pytorch)
    scores["comparison"]["logit_error"] = relative_error(in_file, network)
    if float_model is not None:
        compared = {"int8": latency["compressed"], "float": latency["float"]}
        scores["gate"] = int8_vs_float(files["compressed"], in_float, compared, runtime=runners["compressed"].runtime)
        line = doubt(files["compressed"].name, scores["comparison"]["logit_error"])
        scores["gate"]["warnings"] += [line] if line is not None else []
    if targets:
        scores["targets"] = _targets(run, targets, loader, predicted["compressed"], in_pytorch, threads, stages)
    scores["classes"] = {"names": classes, "recall": recall}
    scores["provenance"] = provenance(run, files, data, config, len(labels), call)
    write_confusion(run, classes, predicted, labels)
    write_scores(run, scores)
    return scores


def _targets(
    run: Path,
    targets: Sequence[str],
    loader: Iterable[Any],
    in_onnx: np.ndarray,
    in_pytorch: np.ndarray,
    threads: int,
    stages: Stages,
) -> dict[str, Any]:
    """Return what each runtime makes of the student's file; latencies are taken in turn."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for target in targets:
            path = run / f"student{TARGETS[target].suffix}"
            try:
                require(target)
                runners[target] = stack.enter_context(open_runner(path, threads=threads))
            except UserError as error:
                found[target] = {"missing": str(error)}
        call = _first_call(loader)
        stages("latency, runtimes in turn")
        latency = interleaved_latency(runners, _batches(call, BATCH_SIZES), tell=stages.part)
        for target, runner in runners.items():
            stages(f"accuracy in {runner.runtime}")
            logits, labels = _predict(runner, stages.each(loader))
            answers = logits.argmax(axis=1)
            found[target] = {
                "file": Path(runner.name).name,
                "runtime": runner.runtime,
                "bytes": runner.count(batch_of(call, 1))["bytes"],
                "accuracy": float(np.mean(answers == labels)),
                "agreement": float(np.mean(answers == in_onnx)),
                "flips": int(np.sum(answers != in_pytorch)),
                "flips_of": len(answers),
                "latency_ms": latency[target],
            }
    return {target: found[target] for target in targets}


def _predict(
    runner: Runner,
    dataloader: Iterable[Any],
    form: BatchFormat = BatchFormat(),  # noqa: B008 (frozen)
) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = [], []
    for batch in dataloader:
        parts = form.labelled(batch)
        answers = _class_indices(runner.name, parts.labels)
        logits.append(_one_answer_each(runner.name, runner.run(runner.feed(parts.call)), len(answers)))
        labels.append(answers)
    if not logits:
        raise UserError(f"{runner.name}: no data to measure on; expected at least one batch")
    scores, answers = np.concatenate(logits), np.concatenate(labels)
    if not np.isfinite(scores).all():
        raise UserError(f"{runner.name}: its logits hold NaN or infinity; nothing was written")
    if answers.min() < 0 or answers.max() >= scores.shape[1]:
        raise UserError(
            f"{runner.name}: answers {scores.shape[1]} classes, but the labels go from {answers.min()} to "
            f"{answers.max()}; measure it on its own data"
        )
    return scores, answers


def _class_indices(name: str, labels: Any) -> np.ndarray:
    found = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(
            f"{name}: labels are {found.dtype} of shape {found.shape}, expected class indices (batch,): one answer a "
            "sample is what can be measured"
        )
    return found.astype(np.int64)


def _one_answer_each(name: str, logits: np.ndarray, samples: int) -> np.ndarray:
    if logits.ndim != 2 or len(logits) != samples:
        raise UserError(
            f"{name}: gives logits of shape {logits.shape} for {samples} labels, expected (batch, classes): one answer "
            "a sample is what can be measured"
        )
    return logits


def _first_call(dataloader: Iterable[Any]) -> Call:
    return BatchFormat().split(next(iter(dataloader))).call


def _batches(call: Call, sizes: Sequence[int]) -> dict[str, Call]:
    return {f"batch_{size}": batch_of(call, size) for size in sizes}


def _model_scores(
    runner: Runner, size: Size, accuracy: float, macro_f1: float, latency: dict[str, Latency]
) -> ModelScores:
    return {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "parameters": size["parameters"],
        "macs": size["macs"],
        "bytes": size["bytes"],
        "runtime": runner.runtime,
        "threads": runner.threads,
        "latency_ms": latency,
    }


def _scores(
    run: Path,
    models: dict[Role, ModelScores | None],
    reference: Role,
    predicted: Mapping[Role, np.ndarray],
    in_pytorch: np.ndarray,
) -> Scores:
    compared, compressed = models[reference], models["compressed"]
    assert compared is not None
    assert compressed is not None
    ratios = compare(compared, compressed)
    return {
        "schema": SCHEMA,
        "recipe": recipe_name(run),
        "models": models,
        "comparison": {
            "retention": ratios["retention"],
            "size_ratio": ratios["size_ratio"],
            "mac_ratio": ratios["mac_ratio"],
            "parameter_ratio": ratios["parameter_ratio"],
            "speedup_batch_1": ratios["speedup_batch_1"],
            "speedup_batch_32": ratios["speedup_batch_32"],
            "agreement": float(np.mean(predicted[reference] == predicted["compressed"])),
            "flips": int(np.sum(in_pytorch != predicted["compressed"])),
            "flips_of": len(in_pytorch),
        },
        "classes": {},
        "provenance": {},
    }


def _test_data(config: Mapping[str, Any]) -> Any:
    from lighten.data import build_data

    data = build_data(config["data"]["name"], batch_size=100, **config["data"].get("options", {}))
    data.prepare_data()
    data.setup("test")
    return data

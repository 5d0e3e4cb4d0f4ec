"""The compressed student's model folder, made from the last good checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lighten.delivery.folders.model import CONFIG, build, cut, load, save, save_tokenizer
from lighten.delivery.folders.run import open_run, read_json, write_json, write_text
from lighten.errors import UserError, first_line
from lighten.pruning.live_cut import take_shapes_
from lighten.pruning.norms import restore_masks_
from lighten.pruning.plan import Plan
from lighten.quantization.post_training import quantize_post_training
from lighten.quantization.sensitivity import find_float_layers
from lighten.quantization.settings import STATIC, QuantizeSettings, check_calibration
from lighten.tasks import task_of
from lighten.training.checkpoint import AtomicCheckpointIO, latest_good
from lighten.utils.batch import BatchFormat
from lighten.utils.compression import record_, record_of

FIT, SENSITIVITY = "fit.json", "sensitivity.json"
"""What the fit works on, written before its first step: the student's ``config.json``, quantization settings, targets;
and which layers suffered most from int8, where that was asked."""


def shrink_run(run: str | Path) -> Path:
    """Cut out of the last good checkpoint's student what its plan removes; write ``plan.json`` and ``student/``.

    Reads ``fit.json`` and ``checkpoints/``. The plan is the checkpoint's own: of an earlier state, an earlier plan.

    Raises:
        UserError: if one of them is missing or damaged.
    """
    run = open_run(run)
    fit = read_json(run / FIT, made_by="lighten train recipe=…")
    model = build(fit["config"], {"quantization": fit["quantization"], "plan": None})
    checkpoint = latest_good(run / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{run / 'checkpoints'}: holds no readable checkpoint; train again")
    plan = _load_student(model, checkpoint)
    (run / "plan.json").unlink(missing_ok=True)
    if plan is not None:
        write_text(run / "plan.json", plan)
        model = cut(model.eval(), Plan.from_json(plan))
    if fit.get("after_training") is not None:
        model = _quantized(model.eval(), fit, run)
    config = {key: value for key, value in fit["config"].items() if key not in ("schema", "model")}
    save(model.eval(), run / "student", **config)
    save_tokenizer(run / "student")
    return run / "student"


def quantize_folder(
    folder: str | Path, mode: str, *, calibration: int = QuantizeSettings.calibration, **settings: Any
) -> Path:
    """Quantize the model of a folder after training and write it into a folder beside it, ``<folder>-<mode>``.

    Args:
        folder: as ``lighten.save`` wrote it, with the ``data`` that the model was trained on; float.
        mode: of ``quantize_post_training``.
        calibration: samples of the validation split, for ``"static"``.
        settings: ``ranges``, ``weight_bits``, ``exclude`` of ``quantize_post_training``.

    Raises:
        UserError: if the folder cannot be read, or as ``quantize_post_training``.
    """
    check_calibration(calibration)
    folder = Path(folder)
    model = load(folder)
    config = read_json(folder / CONFIG, made_by="lighten.save")
    small = _calibrated(model, config, mode, calibration, settings)
    extra = {key: value for key, value in config.items() if key not in ("schema", "model")}
    return save(small, folder.with_name(f"{folder.name}-{mode}"), **extra)


def first_samples(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield ``(inputs, labels)`` or dicts until they hold ``samples``; the last one is cut."""
    for batch in batches:
        given = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
        size = min(len(given[0]), samples)
        cut = [x[:size] for x in given]
        yield dict(zip(batch, cut, strict=True)) if isinstance(batch, Mapping) else tuple(cut)
        samples -= size
        if not samples:
            return


def _quantized(model: nn.Module, fit: Mapping[str, Any], run: Path) -> nn.Module:
    settings = dict(fit["after_training"])
    mode, samples, max_drop = (settings.pop(key) for key in ("mode", "calibration", "max_drop"))
    if max_drop is not None:
        data = _validation(fit["config"], samples)
        wanted = {key: settings[key] for key in ("ranges", "weight_bits", "exclude")}
        task = task_of(fit["config"].get("task", "classification"))
        found = find_float_layers(model, data, max_drop=max_drop, task=task, **wanted)
        write_json(run / SENSITIVITY, found.as_json())
        settings["exclude"] = [*settings["exclude"], *found.exclude]
    return _calibrated(model, fit["config"], mode, samples, settings)


def _calibrated(
    model: nn.Module, config: Mapping[str, Any], mode: str, samples: int, settings: Mapping[str, Any]
) -> nn.Module:
    batches = _validation(config, samples) if mode == STATIC else None
    small = quantize_post_training(model, batches, mode=mode, **settings)
    if batches is not None:
        count = sum(len(BatchFormat().labelled(batch).labels) for batch in batches)
        settings = {**record_of(small).quantization, "calibration": {"samples": count, "split": "validation"}}
        record_(small, quantization=settings)
    return small


def _validation(config: Mapping[str, Any], samples: int) -> list[Any]:
    from lighten.data import build_data

    data: Any = build_data(config["data"]["name"], batch_size=100, **config["data"].get("options", {}))
    data.prepare_data()
    data.setup("fit")
    return list(first_samples(data.val_dataloader(), samples))


def _load_student(model: nn.Module, checkpoint: Path) -> str | None:
    """Load the student's weights into ``model``; return the plan that ``Prune`` had then, as JSON."""
    content = AtomicCheckpointIO().load_checkpoint(checkpoint)
    prefix = "student."
    state = {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    try:
        state = take_shapes_(model, state)
        restore_masks_(model, state)
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{checkpoint}: is not of this recipe's student ({first_line(error)})") from None
    states = [state for key, state in content.get("callbacks", {}).items() if key.startswith("Prune{")]
    return next((state["plan"] for state in states if "plan" in state), None)

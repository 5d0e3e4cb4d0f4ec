"""Images of one's own: a folder a class, a table of paths, or images with masks, target pictures or boxes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lighten.data.registry import register_data
from lighten.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lighten.data.find_images import Found
    from lighten.data.own_image_data import OwnImageData

TASKS = ("classification", "multilabel", "regression", "segmentation", "image", "detection")
_OF_TABLES = ("classification", "multilabel", "regression")
_RESIZES = ("crop", "stretch", "pad")
_BOXES = ("xywh", "xyxy", "cxcywh")
_CACHES = ("auto", "memory", "disk", "none")


@register_data("images")
def images(
    *,
    batch_size: int,
    seed: int,
    workers: int,
    folder: str | None = None,
    table: str | None = None,
    image_column: str = "image",
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    group_column: str | None = None,
    masks: str | None = None,
    targets: str | None = None,
    mask_values: Sequence[int] | None = None,
    annotations: str | None = None,
    box_format: str | None = None,
    matches: int | None = None,
    nms: float | None = None,
    classes: Sequence[str] | None = None,
    task: str | None = None,
    unit: str = "",
    size: int | Sequence[int] | None = None,
    resize: str | None = None,
    channels: int | None = None,
    white: int = 65535,
    test: float = 0.15,
    validation: float = 0.15,
    skip_broken: float = 0.01,
    augment: bool = True,
    flip: bool | None = None,
    crop: float | None = None,
    colour: float | None = None,
    erase: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    views: int | None = None,
    cache: str = "auto",
) -> "OwnImageData":
    """Build the data module of images of one's own; what is not said is found from what is there, and told.

    Args:
        batch_size: samples of one process.
        seed: of order and augmentation; the splits do not depend on it.
        workers: processes that fetch batches ahead.
        folder: with a folder a class, with ``images`` and ``masks`` (or ``targets``), or with boxes as COCO, YOLO or
            Pascal VOC write them; below ``train``, ``val`` and ``test`` where these are there. With ``table``: what its
            paths are relative to.
        table: a CSV, TSV, Parquet or JSON-lines file, a row an image.
        image_column: of paths, in the table.
        label_column: of classes or numbers; ``label`` where nothing else is said.
        label_columns: several columns: of 0 and 1, one a label, or of numbers.
        group_column: images of one group stay in one split.
        masks: folder of masks with the names of the images in ``folder``: one number a pixel, 255 where none holds.
        targets: folder of pictures with the names of the images in ``folder``: what the network is to answer.
        mask_values: value that each class has in masks, as ``[0, 255]``; else classes are numbered from 0.
        annotations: of boxes, where they are not found in ``folder``: a COCO file, or a folder of text or XML files.
        box_format: what a box's four numbers are, where files are not as their format has them: ``xywh`` (left, top,
            width, height), ``xyxy`` (left, top, right, bottom) or ``cxcywh`` (centre, width, height).
        matches: of boxes, setting of task ``detection``: places of the answer that learn each box; 1 unless given.
        nms: of boxes, likewise: the overlap from which on the weaker of two boxes of a class goes.
        classes: names of the classes in the order of their numbers.
        task: ``classification``, ``multilabel``, ``regression``, ``segmentation``, ``image`` or ``detection``.
        unit: of the numbers of a regression.
        size: pixels of a side, or [height, width]; else the median of the shorter sides, at most 224.
        resize: ``crop`` cuts what is too long, ``stretch`` draws out, ``pad`` adds black; else ``pad`` with boxes, and
            ``crop`` without.
        channels: 1 for grey, 3 for RGB; else 1 where all are grey. What is transparent lies on white.
        white: value of white in images of 16 bits.
        test: share held out for the test, where no folder says it.
        validation: likewise, for choices.
        skip_broken: share of the images that may be unreadable, and of the boxes that may have no area; they are named
            and skipped.
        augment: change training images.
        flip: left to right, every second time; else where there are colours, as letters and digits are often grey.
        crop: least share of the area that is cut out and drawn out again; 1 for none. Else 0.5; 1 for target pictures.
        colour: brightness, contrast and saturation times up to 1 ± this. Else 0.2; 0 for target pictures.
        erase: share of the images with a rectangle erased.
        mixup: share of the images with another one mixed in; a class is that of the larger part.
        cutmix: share of the images with a part of another one put in, likewise.
        views: different augmentations of an image, one an epoch in turn; ``None`` draws another one each epoch.
        cache: where decoded images are kept: ``memory``, ``disk`` (below ``LIGHTEN_CACHE``), ``none``; ``auto`` is
            memory up to 64 MiB, else the disk.

    Raises:
        UserError: if an option is unknown, out of range, missing or without effect.
    """
    from lighten.data.frame import Looks, sizes_of
    from lighten.data.own_image_data import OwnImageData
    from lighten.data.prepared_images import Wishes

    for key, value, known in (("task", task, TASKS), ("resize", resize, _RESIZES), ("cache", cache, _CACHES),
                            ("box_format", box_format, _BOXES)):  # fmt: skip
        if value is not None and value not in known:
            raise UserError(f"data images: {key}={value!r}; {did_you_mean(str(value), known)}")
    if folder is None and table is None:
        raise UserError("data images: neither folder nor table is given; name where the images are")
    _check_fit(table, task, folder=folder, masks=masks, targets=targets)
    for key, given in (
        ("image_column", image_column != "image"), ("label_column", label_column is not None),
        ("label_columns", bool(label_columns)), ("group_column", group_column is not None), ("unit", bool(unit)),
    ):  # fmt: skip
        if given and table is None:
            raise UserError(f"data images: {key} has no effect without table; add table, or leave {key} out")
    if label_columns and label_column is not None:
        raise UserError("data images: both label_column and label_columns; give one of them")
    twice = next((name for name in label_columns if list(label_columns).count(name) > 1), None)
    if twice is not None:
        raise UserError(f"data images: label_columns has {twice!r} twice; name each column once")
    if masks is not None and targets is not None:
        raise UserError("data images: both masks and targets; give one of them")
    if channels not in (None, 1, 3):
        raise UserError(f"data images: channels={channels}, expected 1 (grey) or 3 (RGB)")
    if white < 1:
        raise UserError(f"data images: white={white}, expected the value of white, as 4095 for 12 bits")
    if size is not None:
        sizes_of(size)
    names = tuple(str(name) for name in classes) if classes is not None else None
    if names is not None and len(set(names)) != len(names):
        raise UserError(f"data images: classes={list(names)} has a name twice; name each class once")

    boxes = {"annotations": annotations, "box_format": box_format, "matches": matches, "nms": nms}
    asked = next((key for key, value in boxes.items() if value is not None), None)
    if asked is not None and (table is not None or masks or targets or task not in (None, "detection")):
        raise UserError(f"data images: {asked} is of boxes, which need folder alone; leave the rest, or {asked}, out")

    def find() -> "Found":
        if table is None and masks is None and targets is None and task in (None, "detection"):
            from lighten.data.find_boxes import find_boxes

            wanted = asked is not None or task is not None
            found = find_boxes(
                str(folder),
                annotations=annotations,
                classes=names,
                box_format=box_format,
                skip=skip_broken,
                asked=wanted,
            )
            if found is not None:
                return found
        if table is None:
            from lighten.data.find_images import find_in_folder

            return find_in_folder(str(folder), masks=masks, targets=targets, classes=names)
        from lighten.data.image_table import find_in_table

        return find_in_table(
            table, folder=folder, image_column=image_column, label_column=label_column,
            label_columns=tuple(label_columns), group_column=group_column, classes=names, task=task,
        )  # fmt: skip

    wishes = Wishes(
        task=task, test=test, validation=validation, skip_broken=skip_broken, classes=names, mask_values=mask_values,
        unit=unit, detection={key: boxes[key] for key in ("matches", "nms") if boxes[key] is not None}, cache=cache,
    )  # fmt: skip
    changes = {"flip": flip, "crop": crop, "colour": colour, "erase": erase, "mixup": mixup, "cutmix": cutmix}
    return OwnImageData(
        find, Looks(size, resize, channels, white), wishes, batch_size=batch_size, seed=seed, workers=workers,
        augmentation=changes if augment else None, views=views,
    )  # fmt: skip


def _check_fit(
    table: str | None, task: str | None, *, folder: str | None, masks: str | None, targets: str | None
) -> None:
    """Raise ``UserError`` where masks or targets have no effect, or the task is for something else."""
    for key, value, wanted in (("masks", masks, "segmentation"), ("targets", targets, "image")):
        if value is None:
            continue
        if table is not None or folder is None:
            raise UserError(f"data images: {key} needs folder, of the images, and no table; give folder alone")
        if task not in (None, wanted):
            raise UserError(f"data images: task={task} with {key}, expected {wanted}; leave task out")
    if table is not None and task not in (None, *_OF_TABLES):
        raise UserError(f"data images: task={task} with table; {did_you_mean(str(task), _OF_TABLES)}")

"""CIFAR-10 (Krizhevsky 2009) through the ``datasets`` library: ten classes, 32×32 colour pixels, 50,000 + 10,000."""

from functools import partial
from typing import TYPE_CHECKING

from lighten.data.registry import register_data

if TYPE_CHECKING:
    from lighten.data.images import ImageData

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


@register_data("cifar10")
def cifar10(
    *,
    batch_size: int,
    seed: int,
    workers: int,
    path: str = "uoft-cs/cifar10",
    validation: int = 5000,
    augment: bool = True,
    views: int | None = None,
) -> "ImageData":
    """Build the data module of CIFAR-10.

    Args:
        batch_size: samples of one process.
        seed: of order and augmentation.
        workers: processes that fetch batches ahead.
        path: name on the hub, or a local folder that ``datasets`` can load, with columns ``img`` and ``label``.
        validation: samples held out of the training part.
        augment: shift by up to four pixels and flip.
        views: different augmentations of an image, one an epoch in turn; ``None`` draws another one each epoch.
    """
    from lighten.data.hub import read_images
    from lighten.data.images import Facts, ImageData

    return ImageData(
        Facts(
            class_names=CLASSES,
            input_shape=(3, 32, 32),
            mean=MEAN,
            std=STD,
            licence="CIFAR-10: no licence stated; cite Krizhevsky 2009, Learning Multiple Layers of Features",
            shift=4,
        ),
        partial(read_images, path, image="img", label="label"),
        batch_size=batch_size, seed=seed, workers=workers, validation=validation, augment=augment, views=views,
    )  # fmt: skip

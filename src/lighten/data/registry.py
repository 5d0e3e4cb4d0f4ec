"""The registry of data sets that ``data:`` in a recipe names."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lighten.utils.registry import Builder, Registry

if TYPE_CHECKING:
    import lightning as L

_REGISTRY = Registry(
    "data",
    group="lighten.data",
    builtin={
        "fashion_mnist": "lighten.data.fashion_mnist",
        "cifar10": "lighten.data.cifar10",
        "wordnet_glosses": "lighten.data.wordnet_glosses",
        "glue": "lighten.data.glue",
        "table": "lighten.data.table",
        "diamonds": "lighten.data.diamonds",
        "images": "lighten.data.own_images",
        "scenes": "lighten.data.scenes",
    },
    given=("batch_size", "seed", "workers"),
)


def register_data(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a builder available as ``name`` in recipes.

    The builder is called as ``builder(batch_size=…, seed=…, workers=…, **options)`` and returns a
    ``LightningDataModule`` that also has

    - ``num_classes``, ``class_names``, ``licence`` (one line) and ``fingerprint`` (SHA-256 of the content and of the
      options that change the samples);
    - ``input_shape``: (channels, height, width) for images, (length,) for texts, which also have a ``tokenizer``,
      ``{"numbers": count, "categories": [size, …]}`` for tables;
    - ``mean`` and ``std``, per channel, for values in [0, 1]; empty for texts;
    - ``task``: ``"classification"``, the default, ``"multilabel"``, ``"regression"`` or ``"masked_lm"``;
    - ``preprocessing()``, available after ``setup``, if users of the model must preprocess inputs: JSON types, from
      which :func:`lighten.data.preprocessing.reader_of` makes a reader of files or rows;
    - for ``distil.cache``: ``keyed`` (if it is set, training batches have ``keys``), ``views`` (number of views of a
      training sample; ``None``: another one each epoch) and, after ``setup``, ``train_samples``.

    Examples are :class:`lighten.data.images.ImageData` and :class:`lighten.data.text.TextData`.

    Raises:
        UserError: if another module registered the name.
    """
    return _REGISTRY.register(name)


def data_names() -> list[str]:
    """Return the names that recipes may use, without importing the data modules."""
    return _REGISTRY.names()


def build_data(
    name: str, *, batch_size: int = 128, seed: int = 0, workers: int = 0, **options: Any
) -> "L.LightningDataModule":
    """Return a data module, with ``name`` and ``options`` set on it. It has not read anything yet.

    Args:
        name: one of ``data_names()``.
        batch_size: samples in a batch of one process.
        seed: for order and augmentation; the splits do not depend on it.
        workers: processes that fetch batches ahead.
        **options: options of the builder.

    Raises:
        UserError: if the name or an option is unknown, or an option's value is out of range.
    """
    options = _REGISTRY.bind(name, options)
    data = _REGISTRY.get(name)(batch_size=batch_size, seed=seed, workers=workers, **options)
    data.name = name
    data.options = options
    for attribute, usual in (("task", "classification"), ("keyed", False), ("views", 1)):
        declared = inspect.getattr_static(data, attribute, data) is not data  # a property may have to read the data
        if not declared and not hasattr(data, attribute):
            setattr(data, attribute, usual)
    return data


def check_data(name: str, options: Mapping[str, Any]) -> None:
    """Check name and option names; nothing is read.

    Raises:
        UserError: if the name or an option is unknown.
    """
    _REGISTRY.bind(name, options)

"""What a model folder says of the data that its model was trained on."""

from typing import Any

from lighten.tasks import task_of


def about_data(data: Any) -> dict[str, Any]:
    """Return the entries of ``config.json`` that name a data module of the package and say how samples are read."""
    return {
        "data": {"name": data.name, "options": dict(data.options), "fingerprint": data.fingerprint},
        "task": task_of(data.task).settings(),
        **({"preprocessing": data.preprocessing()} if hasattr(data, "preprocessing") else {}),
        "classes": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
    }

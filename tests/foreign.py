"""``timm`` and ``torchvision`` for tests: installed, or in the folder that ``LIGHTEN_FOREIGN`` names.

Beside builds of torch from another index torchvision's compiled operators do not load, so those that its import asks
for are defined here. Outside of the block both are out of sight: other libraries behave differently where they are.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

import torch
from need import need

PACKAGES = ("timm", "torchvision")
_KEPT: dict[str, ModuleType] = {}
_OPERATORS: list[torch.library.Library] = []


@contextmanager
def foreign() -> Iterator[None]:
    """Let both be imported inside the block; skip the test where they are not there, as ``need`` does."""
    folder = os.environ.get("LIGHTEN_FOREIGN")
    installed = all(map(find_spec, PACKAGES))
    how = "pip install -c constraints.txt --no-deps --target FOLDER timm torchvision, and LIGHTEN_FOREIGN=FOLDER"
    need(installed or folder, "timm and torchvision", how)
    if not installed:
        sys.path.append(str(folder))
    sys.modules.update(_KEPT)
    try:
        _import_torchvision()
        yield
    finally:
        if not installed:
            sys.path.remove(str(folder))
            for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
                _KEPT[name] = sys.modules.pop(name)
            importlib.invalidate_caches()


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
        _OPERATORS.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        found = importlib.import_module("torchvision")
        found.ops.boxes._assert_has_ops = lambda: None


def _nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the boxes that no better one covers, the best first."""
    iou = sys.modules["torchvision"].ops.box_iou(boxes, boxes)
    kept: list[int] = []
    for at in scores.argsort(descending=True).tolist():
        if all(iou[at, other] <= threshold for other in kept):
            kept.append(at)
    return torch.tensor(kept, dtype=torch.int64)

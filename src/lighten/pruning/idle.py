"""Parameters that a forward in eval mode does not read, such as the token that stands for what training masks."""

from collections import Counter

import torch
from torch import Tensor

from lighten.pruning.trace import Tracer
from lighten.pruning.weights import Weight


def attach_idle(tracer: Tracer) -> None:
    """Let vectors that nothing reads follow the width of the module that holds them.

    Such a vector is as long as one width alone of the parameters beside it in its module, or of those within it where
    there are none beside it; where some channels of each width go together, that of most parameters counts. Training
    may read it, which trial cuts show, and a config's width counts for it too.
    """
    known = {name for name, _ in tracer.axes}
    for node in tracer.graph.nodes:
        if node.op != "placeholder" or node.users:
            continue
        weight = tracer.placeholder_labels(node)
        if not isinstance(weight, Weight) or weight.name not in tracer.parameters or weight.name in known:
            continue
        dims = [dim for dim, size in enumerate(weight.shape) if size > 1]
        if len(dims) == 1 and (labels := _width(tracer, weight, weight.shape[dims[0]])) is not None:
            tracer.attach(weight, dims[0], labels, "scale")


def _width(tracer: Tracer, weight: Weight, size: int) -> Tensor | None:
    """Return the labels of the one width of ``size`` channels near a parameter; None where there are several."""
    module = weight.name.rpartition(".")[0]
    prefix = f"{module}." if module else ""
    near = [
        (name, tracer.labels.find(axis.labels))
        for (name, _), axis in tracer.axes.items()
        if name.startswith(prefix) and len(axis.labels) == size
    ]
    beside = [(name, labels) for name, labels in near if "." not in name.removeprefix(prefix)]
    counts = Counter(tuple(labels.tolist()) for _, labels in beside or near)
    apart = [labels for labels in counts if len(set(labels)) == size]  # unlike heads, or what a convolution groups
    if apart:
        return torch.tensor(apart[0]) if len(apart) == 1 else None
    most = counts.most_common(2)
    return torch.tensor(most[0][0]) if most and (len(most) == 1 or most[0][1] > most[1][1]) else None

"""A multilayer perceptron on flattened inputs."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from lighten.models.registry import register_model, wholes


class MLP(nn.Module):
    """Flatten, then linear, optional batch norm and ReLU per hidden layer, then a linear classifier.

    Args:
        inputs: values of one sample.
        num_classes: size of the logits.
        hidden: nodes of each hidden layer.
        batch_norm: normalise each hidden layer before its ReLU.
    """

    def __init__(self, inputs: int, num_classes: int, *, hidden: Sequence[int], batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for nodes in hidden:
            linear = nn.Linear(inputs, nodes, bias=not batch_norm)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            layers += [linear, *([nn.BatchNorm1d(nodes)] if batch_norm else []), nn.ReLU()]
            inputs = nodes
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, …) to logits (N, num_classes)."""
        return self.head(self.features(x.flatten(1)))


@register_model("mlp")
def mlp(
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    hidden: Sequence[int] = (256, 128),
    batch_norm: bool = False,
) -> MLP:
    """Build an :class:`MLP`.

    Raises:
        UserError: if ``hidden`` is not a list of integers above zero.
    """
    return MLP(prod(input_shape), num_classes, hidden=wholes("mlp", "hidden", hidden), batch_norm=bool(batch_norm))

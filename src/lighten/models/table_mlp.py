"""A multilayer perceptron on rows of a table: numbers as they are, categories embedded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.models.registry import register_model, whole, wholes


class TableMLP(nn.Module):
    """Embed the categories, join them with the numbers, then linear, optional batch norm, ReLU and dropout per layer.

    One table holds the embeddings of all columns, one after the other. What is missing or unknown, category 0 of each
    column, begins as zeros: where training had none, it says nothing.

    Args:
        numbers: of a row; 0 for none.
        categories: how many each column has; empty for none.
        num_classes: size of the logits.
        hidden: nodes of each hidden layer.
        embedding: numbers that stand for a category.
        batch_norm: normalise each hidden layer before its ReLU.
        dropout: share of the nodes of each hidden layer that is dropped in training.
    """

    first: Tensor

    def __init__(
        self,
        numbers: int,
        categories: Sequence[int],
        num_classes: int,
        *,
        hidden: Sequence[int],
        embedding: int,
        batch_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed: nn.Embedding | None = None
        if categories:
            self.embed = nn.Embedding(sum(categories), embedding)
            first = torch.tensor([0, *categories]).cumsum(0)[:-1]
            self.register_buffer("first", first, persistent=False)
            with torch.no_grad():
                self.embed.weight[first] = 0
        inputs = numbers + embedding * len(categories)
        layers: list[nn.Module] = []
        for nodes in hidden:
            linear = nn.Linear(inputs, nodes, bias=not batch_norm)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            layers += [linear, *([nn.BatchNorm1d(nodes)] if batch_norm else []), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            inputs = nodes
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, numbers: Tensor | None = None, categories: Tensor | None = None) -> Tensor:
        """Map numbers (N, numbers) and categories (N, columns), from 0 in each, to logits (N, num_classes)."""
        parts = [] if numbers is None else [numbers]
        if self.embed is not None and categories is not None:
            parts.append(self.embed(categories + self.first).flatten(1))
        return self.head(self.features(torch.cat(parts, 1) if len(parts) > 1 else parts[0]))


@register_model("table_mlp")
def table_mlp(
    *,
    num_classes: int,
    input_shape: Mapping[str, Any],
    hidden: Sequence[int] = (256, 256),
    embedding: int = 8,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> TableMLP:
    """Build a :class:`TableMLP`.

    Raises:
        UserError: if the inputs are no table, ``hidden`` is not a list of integers above zero, ``embedding`` is none,
            or ``dropout`` not in [0, 1).
    """
    if not isinstance(input_shape, Mapping) or set(input_shape) != {"numbers", "categories"}:
        raise UserError(
            f"model table_mlp reads tables of numbers and categories, and the inputs are {input_shape}; choose data "
            "such as table or diamonds, or another model"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"model table_mlp: dropout={dropout!r}, expected a share from 0, below 1")
    categories = list(input_shape["categories"])
    return TableMLP(
        whole("table_mlp", "numbers", input_shape["numbers"], least=0 if categories else 1),
        wholes("table_mlp", "categories", categories) if categories else [],
        num_classes,
        hidden=wholes("table_mlp", "hidden", hidden),
        embedding=whole("table_mlp", "embedding", embedding),
        batch_norm=bool(batch_norm),
        dropout=dropout,
    )

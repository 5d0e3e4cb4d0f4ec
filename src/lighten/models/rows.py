"""A small BERT encoder that reads an image row by row: text models' shapes on image data."""

from torch import Tensor, nn

from lighten.errors import UserError
from lighten.models.registry import DEEPEST, MAX_OPTION, register_model, whole


class RowEncoder(nn.Module):
    """Each row of the image is a token: a linear layer embeds it, BERT layers follow, the mean is classified.

    Args:
        values: numbers in one row.
        rows: tokens of one image.
        num_classes: size of the logits.
        width: hidden width.
        layers: transformer layers.
        heads: attention heads of each.
        feed_forward: nodes between the two linear layers of each.
    """

    def __init__(
        self, values: int, rows: int, num_classes: int, *, width: int, layers: int, heads: int, feed_forward: int
    ) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=1, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=feed_forward, max_position_embeddings=rows, type_vocab_size=1,
        )  # fmt: skip
        self.embed = nn.Linear(values, width)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        tokens = self.embed(x.transpose(1, 2).flatten(2))
        return self.head(self.bert(inputs_embeds=tokens).last_hidden_state.mean(1))


@register_model("bert_rows")
def bert_rows(
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    width: int = 96,
    layers: int = 3,
    heads: int = 6,
    feed_forward: int = 384,
) -> RowEncoder:
    """Build a :class:`RowEncoder`.

    Raises:
        UserError: if a size is no integer above zero.
    """
    sizes = {"width": width, "layers": layers, "heads": heads, "feed_forward": feed_forward}
    sizes = {
        name: whole("bert_rows", name, value, most=DEEPEST if name == "layers" else MAX_OPTION)
        for name, value in sizes.items()
    }
    if width % heads:
        raise UserError(f"model bert_rows: heads={heads} do not share width={width} evenly; choose a divisor")
    return RowEncoder(input_shape[0] * input_shape[2], input_shape[1], num_classes, **sizes)

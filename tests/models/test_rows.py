import pytest
import torch

from lighten.errors import UserError
from lighten.models import build_model


def test_each_row_is_a_token():
    """Against the encoder itself, fed by hand; a row that moves is another position."""
    model = build_model("bert_rows", num_classes=4, input_shape=(2, 5, 3), width=12, layers=1, heads=3, feed_forward=16)
    model.eval()
    x = torch.randn(2, 2, 5, 3)
    tokens = torch.stack([model.embed(torch.cat([x[:, 0, r], x[:, 1, r]], 1)) for r in range(5)], 1)
    expected = model.head(model.bert(inputs_embeds=tokens).last_hidden_state.mean(1))
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert not torch.allclose(model(x), model(x.flip(2)))


def test_sizes_are_checked():
    with pytest.raises(UserError, match="heads=0"):
        build_model("bert_rows", num_classes=4, input_shape=(1, 5, 3), heads=0)
    with pytest.raises(UserError, match="heads=5 do not share width=96"):
        build_model("bert_rows", num_classes=4, input_shape=(1, 5, 3), heads=5)
    with pytest.raises(UserError, match="layers=1001, expected at most 1000"):
        build_model("bert_rows", num_classes=4, input_shape=(1, 5, 3), layers=1001)

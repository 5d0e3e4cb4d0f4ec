"""Parameters that eval mode does not read follow the width of their module."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from pruning_nets import assert_right
from torch import nn

from lighten.pruning import plan_pruning, shrink


class Masked(nn.Module):
    """Puts a learned token where training hides the input; ``beside`` is a parameter of the same module."""

    def __init__(self, *, beside):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(5, 8)) if beside else None
        self.a, self.b, self.c, self.head = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        if self.training:
            hidden = torch.rand(x.shape[:2]) < 0.5
            x = torch.where(hidden[..., None], self.token, x)
        if self.place is not None:
            x = x + self.place
        return self.head(x + self.c(F.relu(self.b(x))))


@pytest.mark.parametrize("beside", [True, False])
def test_a_token_for_what_training_masks(beside):
    model = Masked(beside=beside).eval()
    plan = assert_right(model, torch.randn(2, 5, 4))
    assert {name: plan.widths[name] for name in "abc"} == {"a": (8, 4), "b": (12, 6), "c": (8, 4)}
    small = shrink(model, plan)
    kept = plan.groups[0].kept
    assert torch.equal(small.token, model.token[..., list(kept)])


def test_a_vector_as_long_as_two_widths_follows_neither():
    model = Masked(beside=False).eval()
    model.b, model.c = nn.Linear(8, 8), nn.Linear(8, 8)
    plan = plan_pruning(model, torch.randn(2, 5, 4), 0.5)
    assert plan.widths["b"] == (8, 4)
    assert "in training mode" in plan.frozen["a"]


def test_a_token_that_nothing_reads_is_as_wide_as_the_config_says(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    model, x = hf.Dinov2ForImageClassification(hf.Dinov2Config(**sizes, num_labels=3)).eval(), torch.randn(2, 3, 32, 32)
    small = shrink(model, plan_pruning(model, x, 0.5))
    assert small.dinov2.embeddings.mask_token.shape == (1, 16)
    small.save_pretrained(tmp_path)
    again = hf.Dinov2ForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(x).logits, small(x).logits)


def test_what_masks_speech_in_training_is_as_wide_as_its_encoder():
    """The convolution of positions has groups, so that channels of the width go together, as those of heads do."""
    config = hf.Wav2Vec2Config(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, conv_dim=(16,),
        conv_stride=(8,), conv_kernel=(10,), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model, x = hf.Wav2Vec2ForCTC(config).eval(), torch.randn(2, 200)
    plan = plan_pruning(model, x, 0.5)
    assert plan.widths["wav2vec2.encoder.layers.0.attention.out_proj"] == (32, 16)
    assert shrink(model, plan).wav2vec2.masked_spec_embed.shape == (16,)

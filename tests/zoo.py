"""Networks that people prune, small: (model, example input) by name."""

import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from lighten.models import build_model


def images(size=32, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def tokens(length=9, vocabulary=50):
    ids = torch.randint(3, vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def conv(inputs, outputs, kernel=3, stride=1, groups=1):
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Dense(nn.Module):
    """DenseNet-shaped: each layer of a block reads all before it; a transition halves."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList()
        width = 8
        for _ in range(2):
            layers = nn.ModuleList()
            for _ in range(3):
                norm = nn.BatchNorm2d(width)
                layers.append(nn.Sequential(norm, nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1, bias=False)))
                width += 4
            self.blocks.append(
                nn.ModuleList([layers, nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, width // 2, 1))])
            )
            width //= 2
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        for layers, transition in self.blocks:
            for layer in layers:
                x = torch.cat([x, layer(x)], 1)
            x = F.avg_pool2d(transition(x), 2)
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Four branches side by side, twice."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.a = nn.ModuleList([self._branches(8), self._branches(24)])
        self.head = nn.Linear(24, 5)

    def _branches(self, width):
        return nn.ModuleList(
            [
                conv(width, 6, 1),
                nn.Sequential(conv(width, 4, 1), conv(4, 8)),
                nn.Sequential(conv(width, 4, 1), conv(4, 6), conv(6, 6)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(width, 4, 1)),
            ]
        )

    def forward(self, x):
        x = self.stem(x)
        for branches in self.a:
            x = torch.cat([branch(x) for branch in branches], 1)
        return self.head(x.mean((2, 3)))


class ResNeXt(nn.Module):
    """Residual blocks around convolutions in four groups."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv(16, 16, 1), conv(16, 16, 3, groups=4), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Shuffle(nn.Module):
    """ShuffleNet-shaped: halves, a depthwise branch, a channel shuffle by views that follow the width."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), conv(8, 8, 1))
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, block(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Two levels with skips, up by a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 12), conv(12, 16)
        self.up1, self.d1 = nn.ConvTranspose2d(16, 12, 2, 2), conv(24, 12)
        self.up2, self.d2 = nn.ConvTranspose2d(12, 8, 2, 2, groups=2), conv(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        x = self.c(F.max_pool2d(b, 2))
        x = self.d1(torch.cat([self.up1(x), b], 1))
        return self.head(self.d2(torch.cat([self.up2(x), a], 1)))


class Normed(nn.Module):
    """Group, instance and layer norm over convolutions, and a squeeze-and-excite gate."""

    def __init__(self):
        super().__init__()
        self.a, self.group = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.b, self.instance = nn.Conv2d(16, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True)
        self.c, self.one = nn.Conv2d(12, 10, 3, padding=1), nn.GroupNorm(1, 10)
        self.squeeze, self.excite = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)
        self.act, self.d, self.layer = nn.PReLU(10), nn.Linear(10, 12), nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.silu(self.group(self.a(x)))
        x = self.act(self.one(self.c(torch.sigmoid(self.instance(self.b(x))))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.layer(torch.sigmoid(self.d(x.mean((2, 3))))))


class Shared(nn.Module):
    """One block called three times, and a head that reads all of its outputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = conv(3, 8), conv(8, 8), nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x)
        seen = []
        for _ in range(3):
            x = self.block(x)
            seen.append(x.mean((2, 3)))
        return self.head(torch.cat(seen, 1))


class Recurrent(nn.Module):
    """An LSTM over embeddings."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.up, self.head = (
            nn.Embedding(50, 12),
            nn.LSTM(12, 10, batch_first=True),
            nn.Linear(10, 16),
            nn.Linear(16, 5),
        )

    def forward(self, input_ids, attention_mask=None):
        return self.head(F.relu(self.up(self.lstm(self.embed(input_ids))[0][:, -1])))


class Mixer(nn.Module):
    """Token and channel mixing by linear layers."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.n1, self.t1, self.t2 = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.n2, self.c1, self.c2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.n3, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.n2(x))))
        return self.head(self.n3(x).mean(1))


class Encoder(nn.Module):
    """PyTorch's own encoder layers behind an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.encoder(self.embed(input_ids)).mean(1))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)
    )


def flat():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 36, 20),
        nn.ReLU(),
        nn.Linear(20, 4),
    )


TEXT = {"vocab_size": 50, "num_labels": 3}
BERT = {
    **TEXT,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
VISION = {"image_size": 32, "num_labels": 3}


def resnet(layer_type, depths):
    return lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=depths, layer_type=layer_type, num_labels=3
        )
    )


def resnet20():
    return build_model("resnet20", num_classes=5, input_shape=(3, 32, 32), width=8)


ZOO = {
    "resnet18": (resnet("basic", [2, 2, 2, 2]), images),
    "resnet50": (resnet("bottleneck", [3, 4, 6, 3]), images),
    "resnet20": (resnet20, images),
    "mobilenet_v2": (
        lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(depth_multiplier=0.35, **VISION)),
        images,
    ),
    "convnext": (
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32], **VISION)
        ),
        lambda: images(64),
    ),
    "efficientnet": (
        lambda: hf.EfficientNetForImageClassification(
            hf.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, **VISION)
        ),
        images,
    ),
    "regnet": (
        lambda: hf.RegNetForImageClassification(
            hf.RegNetConfig(
                embedding_size=8, hidden_sizes=[16, 24, 32, 48], depths=[1, 2, 2, 1], groups_width=8, num_labels=3
            )
        ),
        images,
    ),
    "vit": (
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, patch_size=8, **VISION
            )
        ),
        images,
    ),
    "swin": (
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, patch_size=2, **VISION)
        ),
        images,
    ),
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)), tokens),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=20, **TEXT)
        ),
        tokens,
    ),
    "roberta": (lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**BERT, pad_token_id=1)), tokens),
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=50,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=20,
                use_cache=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        ),
        tokens,
    ),
    "bert_lm": (lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)), tokens),
    "llama": (
        lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(
                vocab_size=50,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                use_cache=False,
            )
        ),
        tokens,
    ),
    "densenet": (Dense, images),
    "inception": (Inception, images),
    "resnext": (ResNeXt, images),
    "shufflenet": (Shuffle, images),
    "unet": (UNet, images),
    "norms": (Normed, images),
    "mixer": (Mixer, images),
    "encoder": (Encoder, tokens),
    "mlp": (mlp, lambda: images(8)),
    "flat": (flat, lambda: images(16)),
    "shared": (Shared, images),
    "recurrent": (Recurrent, tokens),
}

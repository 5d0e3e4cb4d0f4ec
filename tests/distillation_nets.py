"""Small networks whose layers can be matched, and batches for them."""

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lighten.models import build_model


def resnet(width: int, blocks: int = 1) -> nn.Module:
    return build_model("resnet20", num_classes=4, input_shape=(1, 8, 8), width=width, blocks=blocks)


def images() -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    return DataLoader([(torch.randn(1, 8, 8, generator=draw), i % 4) for i in range(24)], 8)


def bert(layers: int, width: int = 16) -> nn.Module:
    sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, num_labels=4, **sizes))


def texts() -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(16):
        mask = (torch.arange(6) < 3 + i % 4).long()
        ids = torch.randint(1, 50, (6,), generator=draw) * mask
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": i % 4})
    return DataLoader(rows, 8)

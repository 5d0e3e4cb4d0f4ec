"""Norms over six channels as people write them; ``lies`` says where those lie in the input."""

import torch
from torch import nn


class Rms(nn.Module):
    """T5's and Llama's; with ``one`` Gemma's, with ``by_width`` it divides by a width that it remembers."""

    lies = -1

    def __init__(self, one=0.0, by_width=False):
        super().__init__()
        self.weight, self.one, self.by_width, self.dim = nn.Parameter(torch.ones(6)), one, by_width, 6

    def forward(self, x):
        y = x.float()
        mean = y.norm(2, -1, keepdim=True) ** 2 / self.dim if self.by_width else y.pow(2).mean(-1, keepdim=True)
        return ((self.one + self.weight.float()) * (y * torch.rsqrt(mean + 1e-6))).type_as(x)


class First(nn.Module):
    """ConvNeXt's: over the second dimension, written by hand."""

    lies = 1

    def __init__(self):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(6, 1, 1)), nn.Parameter(torch.zeros(6, 1, 1))

    def forward(self, x):
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return self.gamma * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.beta


class Response(nn.Module):
    """ConvNeXt V2's global response norm."""

    lies = -1

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 1, 1, 6)), nn.Parameter(torch.zeros(1, 1, 1, 6))

    def forward(self, x):
        size = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
        return self.weight * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.bias + x


class Bare(nn.LayerNorm):
    """A layer norm without weights."""

    lies = -1

    def __init__(self):
        super().__init__(6, elementwise_affine=False)

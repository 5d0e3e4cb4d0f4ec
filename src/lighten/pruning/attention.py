"""PyTorch's multi-head attention, with as many heads, inputs and outputs as its weights have."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadAttention(nn.MultiheadAttention):
    """Attention whose inputs, heads and outputs have widths of their own.

    ``nn.MultiheadAttention`` wants ``num_heads * head_dim`` channels of its query and refuses the rest. This computes
    the same from the same parameters, and takes the same arguments. A cut module becomes one in place; as
    ``_qkv_same_embed_dim`` is false there, PyTorch does not run its fused kernels, which want equal widths too.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs and, where asked for, the weights of the attention; see ``nn.MultiheadAttention``.

        Source: Vaswani et al., Attention Is All You Need, NIPS 2017 (arXiv 1706.03762), equation 1 and section 3.2.2.
        """
        batched = cast(Any, F)._mha_shape_check(query, key, value, key_padding_mask, attn_mask, self.num_heads)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, and there is none; give the causal mask too")

        def batch_first(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)

        q, k, v = (batch_first(x) for x in _projected(self, query, key, value))
        causal = is_causal and key_padding_mask is None and not need_weights
        shape = (q.shape[0], self.num_heads, q.shape[1], k.shape[1])
        mask = None if causal else _mask(shape, query.dtype, key_padding_mask, attn_mask)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, own.expand(x.shape[0], -1, -1)], 1) for x, own in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        added = (self.bias_k is not None) + self.add_zero_attn
        mask = F.pad(mask, (0, added)) if mask is not None and added else mask
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = None
        if need_weights:
            products = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = F.softmax(products if mask is None else products + mask, -1)
            weights = F.dropout(weights, self.dropout, self.training)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, causal)
        output = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        return (output.squeeze(0) if not batched else output if self.batch_first else output.transpose(0, 1)), weights

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        kind = vars(type(self)).get("plain")
        return made if kind is None else (_unpickled, (kind,), *made[2:])


def _projected(module: HeadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values of all heads, (…, heads * head_dim)."""
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if weight is not None and query is key and key is value:
        return F.linear(query, weight, bias).chunk(3, -1)
    own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weights = own if weight is None else weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))


def _mask(
    scores: tuple[int, ...], dtype: torch.dtype, key_padding_mask: Tensor | None, attn_mask: Tensor | None
) -> Tensor | None:
    """Return what is added to scores of shape (batch, heads, targets, sources)."""
    batch, heads, *each = scores
    padding = F._canonical_mask(key_padding_mask, "key_padding_mask", F._none_or_dtype(attn_mask), "attn_mask", dtype)
    mask = F._canonical_mask(attn_mask, "attn_mask", None, "", dtype, check_other=False)
    if mask is not None:
        shapes = {2: (*each,), 3: (batch * heads, *each)}
        if mask.shape != shapes[mask.dim()]:
            raise RuntimeError(f"attn_mask has shape {tuple(mask.shape)}, expected {shapes[2]} or {shapes[3]}")
        mask = mask.unflatten(0, (batch, heads)) if mask.dim() == 3 else mask
    if padding is None:
        return mask
    padding = padding.view(batch, 1, 1, each[1])
    return padding if mask is None else mask + padding


def trace_by_own_(model: nn.Module) -> None:
    """Give the attention modules of a copy that is traced the forward in which heads are dimensions by themselves."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module._qkv_same_embed_dim = False
            _set_class_(module, own=True)


def restate_attention_(attention: nn.MultiheadAttention) -> None:
    """Make the widths that an attention module remembers those of its weights, and its class one that takes them.

    Heads go as a whole, so ``head_dim`` stays. PyTorch's own class stays where its forward takes these widths.
    """
    module: Any = attention
    packed = getattr(module, "in_proj_weight", None) is not None
    weight = module.in_proj_weight if packed else getattr(module, "q_proj_weight", None)
    if weight is None:  # a subclass that projects by layers of its own
        return
    rows, width = (len(weight) // 3 if packed else len(weight)), weight.shape[1]
    outputs = module.out_proj.weight.shape[0]
    module.num_heads, module.embed_dim = rows // module.head_dim, width
    module.kdim, module.vdim = (
        (width, width) if packed else (module.k_proj_weight.shape[1], module.v_proj_weight.shape[1])
    )
    as_torch_wants = rows == width == outputs
    module._qkv_same_embed_dim = packed and as_torch_wants
    _set_class_(module, own=not as_torch_wants)


def restate_transformer_(transformer: nn.Transformer) -> None:
    """Make the width that a ``nn.Transformer`` checks its inputs against that of its first attention."""
    for module in transformer.modules():
        if isinstance(module, nn.MultiheadAttention):
            restate_attention_(module)
            transformer.d_model = module.embed_dim
            break


def _set_class_(module: Any, *, own: bool) -> None:
    """Put :class:`HeadAttention` in the place of PyTorch's class, or take it away, below what is mixed in."""

    def changed(kind: Any) -> Any:
        plain = nn.MultiheadAttention if kind is HeadAttention else vars(kind).get("plain", kind)
        return _own_class(plain) if own else plain

    kind: Any = type(module)
    wanted = kind.remixed(changed) if hasattr(kind, "remixed") else changed(kind)
    if wanted is not kind:
        module.__class__ = wanted


MADE: dict[Any, Any] = {nn.MultiheadAttention: HeadAttention}
"""The subclasses with widths of their own, by the class that they stand for."""


def _own_class(kind: Any) -> Any:
    """Return ``kind`` with :class:`HeadAttention` below it: what its forward calls ``super().forward`` is that."""
    if kind not in MADE:
        members = {"__doc__": kind.__doc__, "__module__": kind.__module__, "plain": kind}
        MADE[kind] = type(kind.__name__, (kind, HeadAttention), members)
    return MADE[kind]


def _unpickled(kind: type[nn.MultiheadAttention]) -> nn.Module:
    made = _own_class(kind)
    return cast(nn.Module, made.__new__(made))

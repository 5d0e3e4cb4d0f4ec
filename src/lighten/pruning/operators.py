"""Names of operators, by what they do to the places of a tensor's elements."""

# ruff: noqa: SIM905 - words read better than 40 quoted strings
import re

from torch.fx import Node

SAME = frozenset(
    "alias clone contiguous detach dropout alpha_dropout feature_dropout feature_alpha_dropout lift_fresh_copy to "
    "_to_copy type_as zero fill".split()
)
MOVES = frozenset(
    "cat concat concatenate stack hstack vstack view reshape _unsafe_view view_as reshape_as permute transpose t "
    "swapaxes movedim swapdims moveaxis broadcast_to ravel unsafe_split unsafe_chunk "
    "flatten unflatten squeeze unsqueeze expand expand_as repeat tile repeat_interleave split split_with_sizes chunk "
    "tensor_split unbind slice select narrow flip roll rot90 pixel_shuffle pixel_unshuffle channel_shuffle unfold "
    "diagonal reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d mT mH numpy_T adjoint matrix_H".split()
)
POINTWISE = frozenset(
    "copy hardswish threshold log_sigmoid rrelu_with_noise rsub where masked_fill multiply divide "
    "true_divide absolute negative and or xor complex polar fake_quantize_per_tensor_affine".split()
)
"""Those that PyTorch does not tag as pointwise itself."""
REDUCTIONS = frozenset(
    "mean sum amax amin max min var std prod norm linalg_vector_norm logsumexp argmax argmin any all var_mean "
    "std_mean median".split()
)
NORMS = frozenset("layer_norm rms_norm group_norm".split())
"""Those whose statistics run over channels."""
ALONG = frozenset("softmax _softmax log_softmax _log_softmax cumsum cumprod sort".split())
RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split())
CONSTANT = frozenset("zeros ones full empty".split())
"""Those that make a tensor of one number."""
PER_CHANNEL = re.compile(r"_?(?:adaptive_)?(?:(?:avg|max|lp)_pool|upsample_[a-z_]+?)([123])d")


def name_of(node: Node) -> str:
    """Return the operator's name without its library, its variant and the underscore of those in place."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else str(node.target)
    return name.strip("_") if name.startswith("__") else name.removesuffix("_")

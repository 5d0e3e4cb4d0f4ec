"""Networks of ``transformers`` from small configs, with the inputs that their forward asks for."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from foreign_vision import CLASSES, Batch, Candidates, NotBuiltError, small
from torch import Tensor

HEADS = (
    "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM",
    "AUDIO_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "OBJECT_DETECTION", "DEPTH_ESTIMATION", "UNIVERSAL_SEGMENTATION",
    "SPEECH_SEQ_2_SEQ", "CTC", "VIDEO_CLASSIFICATION", "",
)  # fmt: skip
"""Which class of a family is taken: the first of these that it has; the last is the base model."""

SMALL = {
    32: """hidden_size d_model n_embd dim embed_dim hidden_dim emb_dim embedding_size encoder_hidden_size
        decoder_hidden_size d_embed word_embed_proj_dim projection_dim mm_hidden_size feat_extract_dim conv_dim
        fpn_hidden_size encoder_hidden_dim d_inner out_hidden_size""",
    2: """num_hidden_layers n_layer n_layers encoder_layers decoder_layers num_layers num_encoder_layers
        num_decoder_layers num_mel_layers depth num_blocks encoder_num_layers num_key_value_heads num_kv_heads
        n_kv_heads moe_k num_experts_per_tok num_experts_per_token num_conv_pos_embedding_groups""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads encoder_n_heads
        num_encoder_attention_heads num_decoder_attention_heads num_experts num_local_experts n_routed_experts
        moe_num_experts""",
    8: """head_dim attention_head_dim attention_head_size kv_channels d_kv qk_rope_head_dim qk_nope_head_dim v_head_dim
        num_queries state_size""",
    64: """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner mlp_dim dim_feedforward
        moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size encoder_intermediate_size
        max_source_positions max_target_positions""",
    99: "vocab_size vocab_size_per_layer_input",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length seq_length",
    16: "q_lora_rank kv_lora_rank num_conv_pos_embeddings",
    1: "n_groups",
    CLASSES: "num_labels",
}
"""What settings of a config become, at most, whatever a family calls them."""

IMAGES = {"image_size": 64, "img_size": 64, "input_size": 64}


def _shrunk(config: Any) -> dict[str, Any]:
    """Return keywords that make a config of the same class small."""
    import transformers

    most = {word: size for size, words in SMALL.items() for word in words.split()}
    given = config.to_dict()
    small: dict[str, Any] = {"use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small = {key: value for key, value in small.items() if key in given or hasattr(config, key)}
    for key, value in given.items():
        part = getattr(config, key, None)
        if isinstance(part, transformers.PretrainedConfig):
            small[key] = {"model_type": part.model_type, **_shrunk(part)}
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int) and key in most:
            small[key] = min(value, most[key]) if key != "num_labels" else CLASSES
        elif isinstance(value, int) and key in IMAGES:
            patch = given.get("patch_size") or 16
            small[key] = 4 * patch if isinstance(patch, int) else 64
        elif key in ("image_size", "img_size", "input_size") and isinstance(value, list):
            small[key] = [64] * len(value)
        elif key == "layer_types" and isinstance(value, list):
            small[key] = value[:1] + value[-1:]
        elif key in ("depths", "num_hidden_blocks") and isinstance(value, list):
            small[key] = [min(2, depth) if isinstance(depth, int) else depth for depth in value]
        elif key in ("hidden_sizes", "embed_dims", "decoder_hidden_sizes") and isinstance(value, list):
            small[key] = [width // 2 if isinstance(width, int) and not width % 16 else width for width in value]
    return small


def of_transformers(own: str) -> Candidates:
    import transformers
    from transformers.models.auto import modeling_auto

    kind = transformers.CONFIG_MAPPING[own]
    for options in (_shrunk(kind()), {k: v for k, v in _shrunk(kind()).items() if k != "layer_types"}, {}):
        try:
            config = kind(**options)
        except Exception as error:
            last = error
            continue
        for head in HEADS:
            mapping = getattr(modeling_auto, f"MODEL{f'_FOR_{head}' if head else ''}_MAPPING_NAMES", {})
            named = mapping.get(own)
            for class_name in [named] if isinstance(named, str) else named or []:
                cls = getattr(transformers, class_name, None)
                if cls is None:
                    continue
                for batch, words in _inputs(cls, config):
                    yield lambda c=cls, f=config: small(lambda: c(f)), batch, f"{class_name}: {words}"
    raise (
        NotBuiltError(f"no config: {last}"[:120])
        if "last" in locals()
        else NotBuiltError("no class takes an input known here")
    )


def _tokens(config: Any, length: int = 12) -> Callable[[int], Tensor]:
    text = config.get_text_config()
    most = min(99, getattr(text, "vocab_size", None) or 99)
    return lambda samples: torch.randint(3, most, (samples, length))


def _inputs(cls: Any, config: Any) -> Iterator[tuple[Callable[[int], Batch], str]]:
    """Yield what a class of transformers may take, after its forward's signature."""
    taken = inspect.signature(cls.forward).parameters
    ids = _tokens(config)
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or getattr(vision, "img_size", None) or 64
    size = size[0] if isinstance(size, list | tuple) else size
    channels = getattr(vision, "num_channels", None) or 3
    image = lambda n: torch.randn(n, channels, size, size)  # noqa: E731
    if "pixel_values" in taken and "input_ids" in taken:
        yield (
            lambda n: {
                "input_ids": ids(n),
                "pixel_values": image(n),
                "attention_mask": torch.ones(n, 12, dtype=torch.int64),
            },
            "tokens, image",
        )
    if "input_ids" in taken:
        if "decoder_input_ids" in taken:
            yield lambda n: {"input_ids": ids(n), "decoder_input_ids": ids(n)}, "tokens, decoder's tokens"
        if "attention_mask" in taken:
            yield (
                lambda n: {"input_ids": ids(n), "attention_mask": torch.ones(n, 12, dtype=torch.int64)},
                "12 tokens, mask",
            )
        yield lambda n: {"input_ids": ids(n)}, "12 tokens"
    if "pixel_values" in taken:
        yield lambda n: {"pixel_values": image(n)}, f"{channels}x{size}x{size}"
        yield lambda n: {"pixel_values": torch.randn(n, channels, 224, 224)}, f"{channels}x224x224"
    if "pixel_values_videos" in taken or "pixel_values" in taken:
        name = "pixel_values_videos" if "pixel_values_videos" in taken else "pixel_values"
        frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None) or 4
        yield lambda n: {name: torch.randn(n, frames, channels, size, size)}, f"{frames}x{channels}x{size}x{size}"
    if "input_values" in taken:
        bins, length = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
        if bins and length:
            yield lambda n: {"input_values": torch.randn(n, length, bins)}, f"{length}x{bins}"
        yield lambda n: {"input_values": torch.randn(n, 8000)}, "8000 samples"
        yield lambda n: {"input_values": torch.randn(n, 1, 1600)}, "1x1600 samples"
    if "input_features" in taken:
        bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_projection_input_dim", None) or 80
        length = 2 * (getattr(config, "max_source_positions", None) or 32)
        tail = {"decoder_input_ids": ids} if "decoder_input_ids" in taken else {}
        for shape in ((bins, length), (length, bins)):
            yield (
                lambda n, s=shape: {"input_features": torch.randn(n, *s), **{k: v(n) for k, v in tail.items()}},
                "x".join(map(str, shape)),
            )
    if "past_values" in taken:
        length, width = getattr(config, "context_length", 32), getattr(config, "num_input_channels", 1)
        yield lambda n: {"past_values": torch.randn(n, length, width)}, f"{length}x{width}"

"""Small configurations of the detectors of ``transformers``, for images of 32 pixels a side or more."""

_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
_RT_RESNET = {
    "model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
_HGNET = {
    "model_type": "hgnet_v2", "stage_in_channels": [48, 16, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 16, 16, 16], "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1], "hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
_DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6,
}  # fmt: skip
_RT_DETR = {
    "encoder_in_channels": [16, 16, 16], "encoder_hidden_dim": 16, "encoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "d_model": 16, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 32, "decoder_attention_heads": 2,
    "decoder_layers": 2, "num_queries": 6, "num_denoising": 4,
}  # fmt: skip

DETECTORS = {
    "detr": {"model_type": "detr", "backbone_config": _RESNET | {"out_features": ["stage2"]}, **_DETR},
    "conditional_detr": {
        "model_type": "conditional_detr", "backbone_config": _RESNET | {"out_features": ["stage2"]}, **_DETR,
    },
    "deformable_detr": {
        "model_type": "deformable_detr", "backbone_config": _RESNET | {"out_features": ["stage1", "stage2"]}, **_DETR,
        "num_feature_levels": 2, "d_model": 32, "decoder_layers": 2,
    },
    "yolos": {
        "model_type": "yolos", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "patch_size": 8, "num_detection_tokens": 6,
    },
    "rt_detr": {"model_type": "rt_detr", "backbone_config": _RT_RESNET, **_RT_DETR},
    "rt_detr_v2": {"model_type": "rt_detr_v2", "backbone_config": _RT_RESNET, **_RT_DETR},
    "d_fine": {"model_type": "d_fine", "backbone_config": _HGNET, **_RT_DETR},
    "rf_detr": {
        "model_type": "rf_detr", "d_model": 16, "decoder_ffn_dim": 32, "decoder_layers": 1,
        "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "num_queries": 6, "group_detr": 2,
        "backbone_config": {
            "model_type": "rf_detr_dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "patch_size": 8, "num_windows": 2, "out_features": ["stage1", "stage2"],
        },
    },
}  # fmt: skip
VITPOSE = {
    "model_type": "vitpose",
    "backbone_config": {
        "model_type": "vitpose_backbone", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": [8, 8], "out_indices": [2],
    },
}  # fmt: skip

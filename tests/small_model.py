"""The smallest model of the published architecture: for tests of what surrounds the numbers."""

from __future__ import annotations

from serve_app.model.config import DiTConfig, ModelSizes, TextEncoderConfig, VAEConfig

SMALL = ModelSizes(
    name="small",
    dit=DiTConfig(
        dim=48,
        ffn_dim=96,
        freq_dim=32,
        num_heads=2,
        num_layers=2,
        audio_dim=16,
        audio_inject_layers=(0,),
        text_len=32,
        text_dim=16,
    ),
    vae=VAEConfig(
        dim=4, decoder_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True), patch_size=2
    ),
    text=TextEncoderConfig(vocab=1024, dim=16, dim_attn=16, dim_ffn=32, num_heads=2, num_layers=1),
    speech={
        "hidden_size": 16,
        "num_hidden_layers": 24,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    },
)

"""The features that only a layer shows: biases, QK-norm, RoPE, what defaults to what."""

from __future__ import annotations

from conformance.cases.features import Feature
from gqa_spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    YarnScaling,
)

LAYER = (
    Feature("biases", 16, "a bias left behind in a port", {"qkv_bias": True, "out_bias": True}, layer=True),
    Feature("QK-norm rms", 11, "a norm after RoPE", {"qk_norm": "rms", "rope": RopeConfig()}, layer=True),
    Feature(
        "QK-norm rms_plus_one", 11, "w where 1 + w is meant",
        {"qk_norm": "rms_plus_one", "rope": RopeConfig()}, layer=True,
    ),
    Feature(
        "QK-norm after RoPE", 11, "a norm before RoPE where it follows",
        {"qk_norm": "rms", "qk_norm_after_rope": True, "rope": RopeConfig(), "causal": True}, layer=True,
    ),
    Feature(
        "output gate", 16, "a gate without its bias, of another activation, or after the output's projection",
        {"output_gate": True, "qkv_bias": True, "out_bias": True}, layer=True,
    ),
    Feature(
        "query scale by position", 10, "positions that are not divided by the length, or scale keys too",
        {"query_scale_beta": 0.7, "query_scale_length": 4, "rope": RopeConfig(), "causal": True},
        positions="both", layer=True,
    ),
    Feature("QK-norm rms_full", 11, "a norm per head", {"qk_norm": "rms_full", "rope": RopeConfig()}, layer=True),
    Feature("square RoPE", 10, "values rotated too", {"rope": RopeConfig(), "causal": True}, square=True, layer=True),
    Feature("RoPE half", 10, "interleaved pairs", {"rope": RopeConfig(), "causal": True}, layer=True),
    Feature("RoPE interleaved", 10, "half-split pairs", {"rope": RopeConfig(pairing="interleaved")}, layer=True),
    Feature(
        "RoPE partial", 10, "all dimensions rotated, or divided by head_dim",
        {"rope": RopeConfig(rotary_dim=6, theta=1e5)}, layer=True,
    ),
    Feature(
        "RoPE linear", 10, "positions multiplied by the factor",
        {"rope": RopeConfig(scaling=LinearScaling(factor=3.0))}, layer=True,
    ),
    Feature(
        "RoPE dynamic", 10, "a base that does not grow",
        {"rope": RopeConfig(scaling=DynamicScaling(factor=3.0, original_max_position_embeddings=7))}, layer=True,
    ),
    Feature(
        "RoPE yarn", 10, "an attention factor on one of cos and sin",
        {"rope": RopeConfig(scaling=YarnScaling(factor=4.0, original_max_position_embeddings=40, beta_fast=5.0))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE yarn, own factor", 10, "a ramp rounded to whole pairs, a factor that is ignored",
        {"rope": RopeConfig(scaling=YarnScaling(
            factor=4.0, original_max_position_embeddings=40, beta_fast=5.0, truncate=False, attention_factor=1.7,
        ))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE llama3", 10, "a scaling that short prompts do not show",
        {"rope": RopeConfig(scaling=Llama3Scaling(
            factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0,
        ))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE longrope", 10, "short factors past the original context",
        {"rope": RopeConfig(rotary_dim=8, scaling=LongropeScaling(
            short_factor=(1.0, 1.3, 1.7, 2.9), long_factor=(1.1, 2.3, 5.3, 7.1), factor=4.0,
            original_max_position_embeddings=7,
        ))},
        layer=True,
    ),
    Feature(
        "RoPE longrope, short", 10, "long factors within the original context",
        {"rope": RopeConfig(rotary_dim=8, scaling=LongropeScaling(
            short_factor=(1.0, 1.3, 1.7, 2.9), long_factor=(1.1, 2.3, 5.3, 7.1), factor=4.0,
            original_max_position_embeddings=70,
        ))},
        layer=True,
    ),
    Feature("RoPE, offset per row", 10, "no offset in RoPE", {"rope": RopeConfig()}, offset="per row", layer=True),
    Feature("RoPE at given positions", 10, "angles in 16 bit", {"rope": RopeConfig()}, positions="both", layer=True),
    Feature(
        "RoPE and biases", 16, "a port that permutes weights and not their biases",
        {"rope": RopeConfig(), "qkv_bias": True}, layer=True,
    ),
    Feature(
        "whole layer", 10, "stages in the wrong order",
        {
            "causal": True, "window": 5, "softcap": 0.9, "sinks": True, "qkv_bias": True, "out_bias": True,
            "qk_norm": "rms", "rope": RopeConfig(theta=5e5),
        },
        mask="float per head", layer=True,
    ),
    Feature(
        "QK-norm, large epsilon", 11, "an epsilon that is fixed, or outside the root",
        {"qk_norm": "rms", "qk_norm_eps": 0.3}, layer=True,
    ),
    Feature(
        "QK-norm rms_full, large epsilon", 11, "an epsilon that is fixed, or divided by the number of heads",
        {"qk_norm": "rms_full", "qk_norm_eps": 0.3}, layer=True,
    ),
    Feature(
        "RoPE yarn, mscale", 10, "mscale read as the attention factor",
        {"rope": RopeConfig(scaling=YarnScaling(
            factor=4.0, original_max_position_embeddings=40, beta_fast=5.0, beta_slow=0.1,
            mscale=0.7, mscale_all_dim=1.3,
        ))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE yarn, mscale alone", 10, "mscale used without mscale_all_dim",
        {"rope": RopeConfig(scaling=YarnScaling(factor=4.0, original_max_position_embeddings=40, mscale=0.7))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE yarn, a ramp past the last pair", 10, "a ramp that is not cut at the last pair",
        {"rope": RopeConfig(theta=10.0, scaling=YarnScaling(
            factor=4.0, original_max_position_embeddings=4096, beta_fast=300.0,
        ))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE yarn, a ramp of no width", 10, "a division by a width of 0",
        {"rope": RopeConfig(scaling=YarnScaling(factor=4.0, original_max_position_embeddings=6))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE dynamic at the original length", 10, "a base that grows one token too early",
        {"rope": RopeConfig(scaling=DynamicScaling(factor=3.0, original_max_position_embeddings=13))}, layer=True,
    ),
    Feature(
        "RoPE dynamic, rope_length", 10, "rope_length that is ignored",
        {"rope": RopeConfig(scaling=DynamicScaling(factor=3.0, original_max_position_embeddings=7))},
        rope_length=29, layer=True,
    ),
    Feature(
        "RoPE longrope at the original length", 10, "long factors one token too early",
        {"rope": RopeConfig(rotary_dim=8, scaling=LongropeScaling(
            short_factor=(1.0, 1.3, 1.7, 2.9), long_factor=(1.1, 2.3, 5.3, 7.1), factor=4.0,
            original_max_position_embeddings=13,
        ))},
        layer=True,
    ),
    Feature(
        "RoPE longrope, rope_length", 10, "factors chosen by S where rope_length is given",
        {"rope": RopeConfig(rotary_dim=8, scaling=LongropeScaling(
            short_factor=(1.0, 1.3, 1.7, 2.9), long_factor=(1.1, 2.3, 5.3, 7.1), factor=4.0,
            original_max_position_embeddings=20,
        ))},
        rope_length=21, layer=True,
    ),
    Feature(
        "RoPE longrope, own factor", 10, "an attention_factor that is ignored",
        {"rope": RopeConfig(rotary_dim=8, scaling=LongropeScaling(
            short_factor=(1.0, 1.3, 1.7, 2.9), long_factor=(1.1, 2.3, 5.3, 7.1), factor=4.0,
            original_max_position_embeddings=7, attention_factor=0.83,
        ))},
        layer=True,
    ),
    Feature(
        "RoPE llama3, own factors", 10, "low_freq_factor and high_freq_factor fixed at 1 and 4",
        {"rope": RopeConfig(theta=5e4, scaling=Llama3Scaling(
            factor=5.0, original_max_position_embeddings=96, low_freq_factor=1.7, high_freq_factor=6.0,
        ))},
        positions="both", layer=True,
    ),
    Feature(
        "RoPE at positions of queries alone", 10, "keys rotated by j although the queries' positions are given",
        {"rope": RopeConfig(), "causal": True}, positions="queries", square=True, layer=True,
    ),
    Feature("key without a value", 12, "a value that defaults to the query", layer=True, given="query, key"),
    Feature("value without a key", 12, "a key that defaults to the value", layer=True, given="query, value"),
    Feature("biases of q, k and v alone", 16, "an output bias that is not there", {"qkv_bias": True}, layer=True),
    Feature("output bias alone", 16, "biases that go together", {"out_bias": True}, layer=True),
)  # fmt: skip

"""Configs as plain values: dictionaries, JSON, copies with other settings, pickles."""

import copy
import json
import pickle
import typing

import pytest

from conformance.targets import Backend
from gqa_spec import AttentionConfig, LongropeScaling, ModelConfig, RopeConfig, YarnScaling
from gqa_spec.config import CONFIG_FIELDS, AttentionSettings
from tests.helpers import new_layer

LAYERS = {
    "plain": AttentionConfig(embed_dim=24, num_heads=6),
    "every size": AttentionConfig(embed_dim=24, num_heads=6, num_kv_heads=2, head_dim=10, v_head_dim=3, kv_dim=7),
    "yarn": AttentionConfig(
        embed_dim=24,
        num_heads=6,
        causal=True,
        window=5,
        rope=RopeConfig(theta=5e5, scaling=YarnScaling(factor=4.0, original_max_position_embeddings=64)),
    ),
    "longrope": AttentionConfig(
        embed_dim=24,
        num_heads=6,
        rope=RopeConfig(
            rotary_dim=4,
            scaling=LongropeScaling(
                short_factor=(1.0, 1.5), long_factor=(2.0, 7.0), original_max_position_embeddings=64, factor=4.0
            ),
        ),
    ),
}
MODELS = {
    "decoder": ModelConfig.decoder(vocab_size=101, window=9, qk_norm="rms"),
    "encoder": ModelConfig.encoder(rope=True),
    "layers of two kinds": ModelConfig.decoder(vocab_size=101, hidden_size=24, num_heads=6).replace(
        attention=(LAYERS["yarn"], LAYERS["yarn"], LAYERS["plain"])
    ),
}


@pytest.mark.parametrize("config", [*LAYERS.values(), *MODELS.values()], ids=[*LAYERS, *MODELS])
def test_round_trip_through_json(config):
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


@pytest.mark.parametrize(("given", "stored"), [(True, RopeConfig()), (False, None), (None, None)])
def test_rope_true_is_the_default_rope(given, stored):
    assert AttentionConfig(embed_dim=8, num_heads=2, rope=given).rope == stored
    for name in ("numpy", "torch", "jax"):
        assert new_layer(Backend(name), 8, 2, rope=given).config.rope == stored


def test_round_trip_of_rope():
    for layer in LAYERS.values():
        if layer.rope is not None:
            assert RopeConfig.from_dict(json.loads(json.dumps(layer.rope.to_dict()))) == layer.rope


def test_a_checkpoint_with_a_config_loads_with_weights_only(tmp_path):
    import torch

    torch.save({"config": MODELS["decoder"].to_dict()}, tmp_path / "model.pt")
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    assert ModelConfig.from_dict(stored["config"]) == MODELS["decoder"]


def test_an_unknown_name_is_an_error():
    with pytest.raises(TypeError, match="head_size"):
        AttentionConfig.from_dict({"embed_dim": 24, "num_heads": 6, "head_size": 4})
    with pytest.raises(ValueError, match="head_size"):
        ModelConfig.from_dict(MODELS["decoder"].to_dict() | {"head_size": 4})
    with pytest.raises(ValueError, match=r"scaling\.type: expected linear, .* got 'ntk'"):
        RopeConfig.from_dict({"theta": 1e4, "scaling": {"type": "ntk"}})


def test_replace_derives_sizes_again():
    derived = LAYERS["plain"].replace(embed_dim=48)
    assert (derived.head_dim, derived.v_head_dim, derived.kv_dim, derived.num_kv_heads) == (8, 8, 48, 6)
    assert LAYERS["plain"].replace(num_heads=3) == AttentionConfig(embed_dim=24, num_heads=3)
    assert derived.replace(num_kv_heads=2).replace(embed_dim=24) == AttentionConfig(
        embed_dim=24, num_heads=6, num_kv_heads=2
    )


def test_replace_keeps_sizes_that_were_given():
    given = LAYERS["every size"].replace(embed_dim=48, num_heads=12)
    assert (given.head_dim, given.v_head_dim, given.kv_dim, given.num_kv_heads) == (10, 3, 7, 2)
    with pytest.raises(ValueError, match="num_kv_heads: expected K to divide N = 5"):
        LAYERS["every size"].replace(num_heads=5)


def test_a_decoder_is_a_causal_language_model():
    config = MODELS["decoder"]
    assert all(layer.causal and layer.window == 9 and layer.rope is not None for layer in config.attention)
    assert (config.output, config.tied, config.gated, config.norm) == ("logits", True, True, "rms")
    assert config.feed_forward_size == 704  # 8 / 3 of 256 is 682.7
    assert ModelConfig.decoder(vocab_size=7, hidden_size=16, num_heads=4, feed_forward_size=5).feed_forward_size == 5


def test_the_typed_settings_are_the_fields_of_the_config():
    """The static type of a layer's keywords: every field that is not positional, with the same type; rope=True too."""
    positional = {"embed_dim", "num_heads", "num_kv_heads", "dropout"}
    types, settings = typing.get_type_hints(AttentionConfig), typing.get_type_hints(AttentionSettings)
    types["rope"] |= bool
    assert settings == {name: types[name] for name in CONFIG_FIELDS if name not in positional}


def test_summary_shows_what_differs():
    assert LAYERS["plain"].summary() == "embed_dim=24, num_heads=6, num_kv_heads=6"
    shown = LAYERS["yarn"].replace(dropout=0.1).summary()
    assert "dropout=0.1" in shown
    assert "causal=True, window=5, rope=RopeConfig(theta=500000.0" in shown
    assert "head_dim=10, v_head_dim=3, kv_dim=7" in LAYERS["every size"].summary()

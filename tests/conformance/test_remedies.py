"""Remedies of docs/dialects.md are code that is run here: the target with its remedy passes what it failed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import conformance
from conformance.dialects.detect import Finding, findings
from conformance.dialects.kernel import DialectKernel
from conformance.dialects.remedies import REMEDIES
from conformance.targets import TargetFunction, find_target
from conformance.targets.frameworks import framework
from conformance.targets.table import PUBLIC


def sdpa_lower_right(query, key, value, *, causal=False):
    from torch.nn.attention.bias import causal_lower_right

    mask = causal_lower_right(query.shape[2], key.shape[2]) if causal else None
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
    )


def eager_with_bias(query, key, value, mask=None):
    from conformance.targets.adapters.transformers import eager

    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -math.inf).to(query.dtype)
    return eager(query, key, value, mask)


@pytest.mark.no_shape_checks
@pytest.mark.parametrize(
    ("name", "convention", "attention", "features"),
    [
        ("torch.sdpa", "alignment", sdpa_lower_right, ["causal", "square causal"]),
        ("transformers.eager", "boolean mask", eager_with_bias, ["bool mask", "mask per row", "mask per head"]),
    ],
)
def test_a_remedy_makes_the_cases_pass(name, convention, attention, features):
    assert convention in PUBLIC[name].remedies
    conformance.assert_conforms(attention, features, arrays="torch", dtypes=("float32",))
    found = {f.convention: f.answer for f in findings(find_target(name))}
    fixed = {f.convention: f for f in findings(TargetFunction("fixed", framework("torch"), attention))}
    assert found[convention] != fixed[convention].answer
    assert fixed[convention].agrees


def test_root_mean_square_norms_in_flax():
    """normalize_qk is LayerNorm; its two norms replaced, the layer follows SPEC 11."""
    import jax.numpy as jnp
    from flax import nnx

    import gqa_numpy

    assert "RMSNorm" in PUBLIC["flax.nnx.MultiHeadAttention"].remedies["QK-norm"]
    rngs, rng = nnx.Rngs(0), np.random.default_rng(0)
    layer = nnx.MultiHeadAttention(2, 16, 16, use_bias=False, decode=False, normalize_qk=True, rngs=rngs)
    scales = {name: rng.normal(size=8).astype(np.float32) for name in ("query_ln", "key_ln")}
    for name, scale in scales.items():
        norm = nnx.RMSNorm(8, epsilon=1e-6, rngs=rngs)
        norm.scale[...] = jnp.asarray(scale)
        setattr(layer, name, norm)
    ours = gqa_numpy.GroupedQueryAttention(16, 2, 2, qk_norm="rms", qk_norm_eps=1e-6, dtype=np.float32).eval()
    flat = {name: np.asarray(getattr(layer, name).kernel) for name in ("query", "key", "value")}
    weights = {f"{name[0]}_proj.weight": x.reshape(16, 16).T for name, x in flat.items()}
    weights |= {"o_proj.weight": np.asarray(layer.out.kernel).reshape(16, 16).T}
    ours.load_weights(weights | {"q_norm.weight": scales["query_ln"], "k_norm.weight": scales["key_ln"]})
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(layer(jnp.asarray(x))), ours(x)[0], rtol=0, atol=2e-6)


def test_linen_keeps_scores_in_float32_when_told():
    """What 16 bit cannot tell apart: scores of 256 and 256.25."""
    import jax.numpy as jnp
    from flax import linen

    assert "float32" in PUBLIC["flax.linen"].remedies["16-bit scores"]
    query = np.zeros((1, 1, 1, 16), np.float32)
    key = np.zeros((1, 2, 1, 16), np.float32)
    query[..., :2], key[..., 0], key[:, 1, :, 1] = (32, 4), 8 * 4, 0.25
    value = np.eye(2, dtype=np.float32)[None, :, None]
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (query, key, value))
    exact = 1 / (1 + math.exp(0.25))
    rounded = float(linen.dot_product_attention(q, k, v)[0, 0, 0, 0])
    kept = float(linen.dot_product_attention(q, k, v, dtype=jnp.float32)[0, 0, 0, 0])
    assert abs(kept - exact) < 5e-3 < abs(rounded - exact)


# --- remedies that `gqa dialect` runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", REMEDIES, ids=": ".join)
def test_a_remedy_is_named_where_it_works(pair):
    target = TargetFunction("somebody", framework("numpy"), DialectKernel(frozenset({pair})))
    found = {f.convention: f for f in findings(target)}[pair[0]]
    assert (found.answer, found.ran) == (pair[1], REMEDIES[pair].code)


def test_a_remedy_that_does_not_work_is_not_named():
    """Whoever ignores masks is not helped by one in the place of causal."""
    pairs = frozenset({("alignment", "top-left"), ("boolean mask", "ignored")})
    found = {f.convention: f for f in findings(TargetFunction("somebody", framework("numpy"), DialectKernel(pairs)))}
    assert (found["alignment"].answer, found["alignment"].ran) == ("top-left", "")


def test_a_public_target_is_given_no_advice_that_was_not_run():
    advice = Finding("full cache", "goes on without an error")
    assert advice.remedy
    assert replace(advice, public=True).remedy == ""
    assert replace(advice, public=True, ran="code").remedy == "code"


# --- what the notes of the table say ----------------------------------------------------------------------------------


@pytest.mark.no_shape_checks
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_families_with_qk_norm_round_16_bit_scores_in_eager_alone(family):
    answers = {}
    for path in ("eager", "sdpa"):
        found = {f.convention: f.answer for f in findings(find_target(f"transformers.{family}.{path}"))}
        answers[path] = found["16-bit scores"]
    assert answers == {"eager": "rounded to 16 bit", "sdpa": "kept in float32"}


def test_a_nan_in_the_last_value_of_onnxruntimes_gqa_reaches_earlier_queries():
    pytest.importorskip("onnxruntime")
    from conformance.targets.adapters.onnx import runtime_gqa

    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(1, n, 5, 16)).astype(np.float32) for n in (4, 2, 2))
    for which, rows in ((key, [False] * 4 + [True]), (value, [True] * 5)):
        kept = which[:, :, -1].copy()
        which[:, :, -1] = np.nan
        assert np.isnan(runtime_gqa(query, key, value)).any((0, 1, 3)).tolist() == rows
        which[:, :, -1] = kept


@pytest.mark.parametrize(("softcap", "differs"), [(None, False), (2.0, True)])
def test_a_cache_of_litgpt_with_softcap_sees_the_future(softcap, differs):
    """It adds its cache's boolean mask to the scores; a mask of 0 and -inf is right."""
    pytest.importorskip("litgpt")
    from litgpt.model import CausalSelfAttention, Config

    torch.manual_seed(0)
    settings = {"n_embd": 32, "n_head": 4, "n_query_groups": 2, "rotary_percentage": 1.0, "norm_class_name": "RMSNorm"}
    layer = CausalSelfAttention(Config(n_layer=1, attention_logit_softcapping=softcap, **settings), 0).eval()
    T = 6
    x, cos, sin = torch.randn(1, T, 32), torch.ones(1, T, 8), torch.zeros(1, T, 8)
    seen = torch.ones(1, 1, T, T, dtype=torch.bool).tril()

    def cached(mask):
        layer.kv_cache = layer.build_kv_cache(1, T, 8)
        return layer(x, cos, sin, mask, input_pos=torch.arange(T))

    with torch.no_grad():
        whole = layer(x, cos, sin, None)
        assert ((cached(seen) - whole).abs().max() > 0.01) == differs
        assert torch.allclose(cached(torch.where(seen, 0.0, -math.inf)), whole, atol=1e-6)

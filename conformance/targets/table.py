"""The table of public implementations: which call each row makes, and what its signature cannot state.

Where options of a call change its answers, each is a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from conformance.targets.limits import Limits

SINGLE = ("float32",)
KERNEL = Limits(value_size=False)
MHA = Limits(grouped=False, value_size=False, wide=False)
MODULE = Limits(value_size=False)
HERE = "conformance.targets.adapters"


@dataclass(frozen=True)
class Public:
    """One implementation, called in one way.

    name: as `--target` takes it. path: module and name of the adapter. needs: packages, whose versions are stated.
    options: keywords with which the adapter is built or called. call: what is called, with which options, in which
    mode. remedies: by convention, for a user of this implementation. notes: what must be known to read its rows.
    """

    name: str
    path: str
    arrays: str
    needs: tuple[str, ...]
    call: str
    limits: Limits = field(default_factory=Limits)
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    remedies: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    @property
    def missing(self) -> str:
        """The packages that are not installed; empty where none is."""
        return ", ".join(package for package in self.needs if find_spec(package) is None)

    @property
    def versions(self) -> str:
        return ", ".join(f"{package} {version_of(package)}" for package in self.needs)


def version_of(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "?"


FAMILY_SETTINGS = {
    "llama": "head_dim qkv_bias out_bias causal rope dropout",
    "mistral": "head_dim causal window rope dropout",
    "qwen3": "head_dim qkv_bias out_bias causal window rope dropout qk_norm",
    "gemma2": "head_dim qkv_bias out_bias causal window scale softcap rope dropout",
    "gemma3": "head_dim qkv_bias out_bias causal window scale rope dropout qk_norm",
    "gpt_oss": "head_dim qkv_bias out_bias causal window rope dropout sinks",
}
ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {"qk_norm": "rms"},
    "gemma3": {"qk_norm": "rms_plus_one"},
    "gpt_oss": {"sinks": True},
}
CLASSES = {
    "llama": "LlamaAttention", "mistral": "MistralAttention", "qwen3": "Qwen3Attention",
    "gemma2": "Gemma2Attention", "gemma3": "Gemma3Attention", "gpt_oss": "GptOssAttention",
}  # fmt: skip
OF_FAMILY = "A mask (B, 1, 1, S) goes through the model's `create_causal_mask`; any other is handed on as it is."
LOWER_RIGHT = "attn_mask=torch.nn.attention.bias.causal_lower_right(T, S), without is_causal"
TO_BIAS = "torch.where(mask, 0.0, -math.inf) in the query's dtype"


def _families() -> Iterator[Public]:
    """transformers' families, each with the attention implementations that its models take."""
    for family, settings in FAMILY_SETTINGS.items():
        limits = Limits(
            value_size=False, cross=False, wide=False, always=ALWAYS.get(family, {}), settings=tuple(settings.split())
        )
        for implementation in ("eager", "sdpa"):
            if (family, implementation) != ("gpt_oss", "sdpa"):  # which its models refuse
                yield Public(
                    f"transformers.{family}.{implementation}", f"{HERE}.transformers:FamilyAttention", "torch",
                    ("transformers", "torch"),
                    f"{CLASSES[family]} of a config with attn_implementation={implementation!r}; eval, no_grad",
                    limits, options={"family": family, "implementation": implementation},
                    remedies={"boolean mask": TO_BIAS} if implementation == "eager" else {}, notes=OF_FAMILY,
                )  # fmt: skip


def _torch() -> Iterator[Public]:
    sdpa = (
        "torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)"
    )
    remedies = {"alignment": LOWER_RIGHT}
    apart = "is_causal and attn_mask are not to be combined, as its documentation says."
    yield Public(
        "torch.sdpa",
        f"{HERE}.torch:sdpa",
        "torch",
        ("torch",),
        f"{sdpa}; no_grad; the CPU's own choice of path",
        remedies=remedies,
        notes=apart,
    )
    yield Public(
        "torch.sdpa.math",
        f"{HERE}.torch:sdpa_math",
        "torch",
        ("torch",),
        f"{sdpa} under sdpa_kernel(SDPBackend.MATH); no_grad; CPU",
        remedies=remedies,
        notes=apart,
    )
    yield Public(
        "torch.sdpa.flash",
        f"{HERE}.torch:sdpa_flash",
        "torch",
        ("torch",),
        f"{sdpa} under sdpa_kernel(SDPBackend.FLASH_ATTENTION); no_grad; CPU",
        KERNEL,
        remedies=remedies,
        notes=apart,
    )
    yield Public(
        "torch.flex_attention",
        f"{HERE}.torch:flex",
        "torch",
        ("torch",),
        "torch.nn.attention.flex_attention.flex_attention(query, key, value, score_mod, block_mask, scale, "
        "enable_gqa), not compiled; no_grad; CPU",
        notes="A boolean mask is its block_mask, a bias and a softcap its score_mod; it has no causal and no "
        "window of its own.",
    )
    for weights, name in ((True, "torch.MultiheadAttention"), (False, "torch.MultiheadAttention.without_weights")):
        yield Public(
            name,
            f"{HERE}.torch:MultiheadAttention",
            "torch",
            ("torch",),
            f"torch.nn.MultiheadAttention(batch_first=True)(query, key, value, attn_mask, need_weights={weights}"
            + (", average_attn_weights=False)" if weights else ")")
            + "; eval, gradients enabled; CPU",
            MHA,
            options={"need_weights": weights},
            notes="Its fast path under no_grad takes even numbers of heads alone and is not judged; an empty row is "
            "NaN there. is_causal is a hint for a mask that is causal already, so that both are not combined.",
        )


def _jax() -> Iterator[Public]:
    of = "; booleans as mask=, floats as bias=; jit; CPU"
    yield Public(
        "jax.nn",
        f"{HERE}.jax:dot_product_attention",
        "jax",
        ("jax", "flax"),
        "jax.nn.dot_product_attention(q, k, v, bias, mask, scale, is_causal, local_window_size)" + of,
        KERNEL,
        notes="The row on poison is by mask=; by bias= a hidden NaN in a key leaks too.",
    )
    yield Public(
        "flax.nnx",
        f"{HERE}.jax:nnx_dot_product_attention",
        "jax",
        ("flax", "jax"),
        "flax.nnx.dot_product_attention(query, key, value, bias, mask, is_causal)" + of,
        KERNEL,
    )
    yield Public(
        "flax.nnx.MultiHeadAttention",
        f"{HERE}.jax:MultiHeadAttention",
        "jax",
        ("flax", "jax"),
        "flax.nnx.MultiHeadAttention(decode=False)(query, key, value, mask, is_causal, sow_weights); jit; CPU",
        MODULE,
        remedies={"QK-norm": "replace query_ln and key_ln by flax.nnx.RMSNorm with the same scale"},
    )
    yield Public(
        "flax.linen",
        f"{HERE}.jax:linen_dot_product_attention",
        "jax",
        ("flax", "jax"),
        "flax.linen.dot_product_attention(query, key, value, bias, mask)" + of,
        Limits(grouped=False),
        remedies={"16-bit scores": "pass dtype=jnp.float32"},
    )


def _keras() -> Iterator[Public]:
    for scores in (False, True):
        call = (
            f"keras.layers.GroupQueryAttention(...)(query, value, key, attention_mask, use_causal_mask, "
            f"return_attention_scores={scores}); inference"
        )
        name, options = (".scores", {"scores": True}) if scores else ("", {"scores": False})
        for backend, limits in (("torch", MODULE), ("jax", Limits(value_size=False, dtypes=SINGLE))):
            yield Public(
                f"keras.{backend}{name}",
                f"{HERE}.keras:GroupQueryAttention",
                "numpy",
                ("keras", backend),
                f"{call}; KERAS_BACKEND={backend}",
                limits,
                {"KERAS_BACKEND": backend},
                options,
            )


def _transformers() -> Iterator[Public]:
    yield Public(
        "transformers.eager",
        f"{HERE}.transformers:eager",
        "torch",
        ("transformers", "torch"),
        "eager_attention_forward of transformers.models.llama.modeling_llama; no_grad",
        remedies={"boolean mask": TO_BIAS},
    )
    yield Public(
        "transformers.sdpa",
        f"{HERE}.transformers:sdpa",
        "torch",
        ("transformers", "torch"),
        "transformers.integrations.sdpa_attention.sdpa_attention_forward; no_grad",
        notes="It aligns causal top-left only where there are several queries and no mask, by intent: its "
        "models give a mask otherwise.",
    )
    yield from _families()


def _onnx() -> Iterator[Public]:
    for past in (False, True):
        more, name, options = (" with past_key and past_value", ".past", {"past": True}) if past else ("", "", {})
        yield Public(
            f"onnx.reference{name}",
            f"{HERE}.onnx:reference",
            "numpy",
            ("onnx",),
            f"Attention of opset 25 in onnx.reference.ReferenceEvaluator{more}",
            options=options,
        )
        yield Public(
            f"onnxruntime.Attention{name}",
            f"{HERE}.onnx:runtime",
            "numpy",
            ("onnxruntime", "onnx"),
            f"Attention of opset 24 in onnxruntime, CPUExecutionProvider{more}",
            Limits(dtypes=SINGLE),
            options=options,
        )
    yield Public(
        "onnxruntime.GroupQueryAttention",
        f"{HERE}.onnx:runtime_gqa",
        "numpy",
        ("onnxruntime", "onnx"),
        "com.microsoft.GroupQueryAttention of onnxruntime, CPUExecutionProvider",
        Limits(value_size=False, head_multiple=8, always={"causal": True}, dtypes=SINGLE),
        notes="A NaN in the last value reaches earlier queries too, which causal hides it from; a NaN in "
        "the last key does not.",
    )


def _others() -> Iterator[Public]:
    yield Public(
        "litgpt",
        f"{HERE}.packages:LitGPT",
        "torch",
        ("litgpt", "torch"),
        "litgpt.model.CausalSelfAttention(config, 0)(x, cos, sin, mask); eval, no_grad",
        Limits(value_size=False, cross=False),
        notes="With attention_logit_softcapping it adds boolean masks as numbers, those of its cache too. Its YaRN "
        "scales cos and sin only where mscale or mscale_all_dim is set, and here neither is.",
    )
    for flash in (False, True):
        yield Public(
            "x_transformers" + (".flash" if flash else ""),
            f"{HERE}.packages:x_transformers",
            "torch",
            ("x_transformers", "torch"),
            f"x_transformers.attend.Attend(flash={flash}, ...)(q, k, v, mask, attn_bias); eval, no_grad",
            options={"flash": flash},
        )
    yield Public(
        "tinygrad",
        f"{HERE}.packages:tinygrad",
        "numpy",
        ("tinygrad",),
        "tinygrad.Tensor.scaled_dot_product_attention(key, value, attn_mask, is_causal, enable_gqa)",
        Limits(dtypes=SINGLE),
    )
    yield Public(
        "mlx",
        f"{HERE}.packages:mlx",
        "numpy",
        ("mlx",),
        "mlx.core.fast.scaled_dot_product_attention(q, k, v, scale, mask, sinks); CPU",
        Limits(value_size=False, dtypes=SINGLE),
    )


SOURCES = (_torch, _jax, _keras, _transformers, _onnx, _others)
PUBLIC: Mapping[str, Public] = {row.name: row for rows in SOURCES for row in rows()}

"""The conventions in which implementations of attention differ, by name: the specification's choice and the others.

A dialect says, for some conventions, which choice is followed instead of the specification's. `alternatives.py`
computes in any dialect; `dialect.py` finds out which one somebody else's attention speaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

Dialect = frozenset[tuple[str, str]]  # (convention, choice), the specification's choices left out
SPEC: Dialect = frozenset()


@dataclass(frozen=True)
class Choice:
    """One way to do it. where: who does it, and who was bitten. remedy: what to do where it meets the specification."""

    name: str
    where: str
    remedy: str


@dataclass(frozen=True)
class Convention:
    """One decision. clause: of SPEC.md. spec: the specification's choice. layer: a kernel alone does not have it."""

    name: str
    clause: int
    spec: str
    others: tuple[Choice, ...]
    layer: bool = False

    @property
    def choices(self) -> tuple[str, ...]:
        return self.spec, *(choice.name for choice in self.others)

    def choice(self, name: str) -> Choice:
        return next(choice for choice in self.others if choice.name == name)


_FILL = "fill empty rows with 0 afterwards, or leave them out of any comparison"

CONVENTIONS = (
    Convention("head order", 1, "contiguous: n // G", (
        Choice("tiled: n % K", "np.tile, .repeat, x-transformers, old ONNX function body (onnx#7274, jax-js#180)",
               "permute query heads, and the rows of q_proj and columns of o_proj: head n takes the place of "
               "(n % G) * K + n // G"),
        Choice("divided by K: n // K", "ONNXim#34; right wherever K equals G, as in 4/2, 9/3, 16/4",
               "divide by N / K, not by K"),
        Choice("keys contiguous, values tiled", "two different repeats in one function", "repeat key and value alike"),
    )),
    Convention("scale", 2, "H ** -0.5", (
        Choice("1", "T5, Gemma 4; an unscaled kernel", "pass scale = H ** -0.5, or multiply the query by it"),
        Choice("Hv ** -0.5", "the head size read off the value", "pass scale"),
        Choice("1 / H", "scaled twice: query and scores", "scale once"),
    )),
    Convention("given scale", 2, "obeyed", (
        Choice("ignored", "always H ** -0.5", "multiply the query by scale * H ** 0.5"),
        Choice("on top of H ** -0.5", "both are multiplied", "multiply the scale by H ** 0.5"),
    )),
    Convention("alignment", 4, "bottom-right", (
        Choice("top-left", "PyTorch is_causal, jax, flax, keras, ONNX without a cache (pytorch#108108)",
               "pass it masks.causal(T, S) as its mask, or give ours offset=0"),
    )),
    Convention("causal window of W", 4, "W keys, its own counted", (
        Choice("W + 1 keys", "jax local_window_size, flash-attention window_size=(W, 0), x-transformers, PyTorch's "
               "flex_attention tutorial (hf#39408, vllm#3385, ort#25927)", "pass W - 1"),
        Choice("W - 1 keys", "a cache that holds W - 1 (transformers' rolling cache)", "pass W + 1"),
    )),
    Convention("window without causal", 4, "2 W - 1 keys, a band", (
        Choice("2 W + 1 keys", "jax local_window_size=W, flash-attention (W, W)", "pass W - 1"),
        Choice("2 W - 3 keys", "the causal off-by-one on both sides", "pass W + 1"),
        Choice("W keys, the past only", "a window that implies causal (Mistral's)", "pass the band as a mask"),
        Choice("the future open", "a window that only looks back", "bound both sides"),
        Choice("W + 1 keys, the future open", "ONNX 25: left_window_size alone", "bound both sides, and pass W - 1"),
    )),
    Convention("chunk", 4, "floor division", (
        Choice("truncated", "C's and Rust's / on negative positions", "use floor division"),
    )),
    Convention("offset", 4, "obeyed", (
        Choice("ignored", "query i at i + S - T, whatever is given", "pass the mask"),
    )),
    Convention("boolean mask", 3, "True may attend", (
        Choice("True is hidden", "nn.MultiheadAttention, nn.Transformer (pytorch#21518, pytorch#120668)", "pass ~mask"),
        Choice("added as a number", "a boolean given to scores + mask", "pass 0 and -inf"),
    )),
    Convention("floating mask", 3, "added to the scores", (
        Choice("read as boolean", "flax: all but 0 may attend, so 0 / -1e9 attends what it should hide",
               "pass a boolean mask; a bias cannot be given"),
        Choice("finfo.min is hidden", "ONNX Runtime; implementations that use it for -inf (hf#17306, hf#31303)",
               "never use finfo.min as a bias"),
        Choice("ignored", "a mask of another dtype is dropped", "pass a boolean mask"),
    )),
    Convention("mask with causal", 3, "both", (
        Choice("causal alone", "the mask is dropped (dia#170, mindone#1229)", "combine both into one mask"),
        Choice("mask alone", "causal is a hint (nn.MultiheadAttention, keras#23038)", "combine both into one mask"),
    )),
    Convention("empty row, boolean", 5, "0", (
        Choice("mean of all values", "jax, flax, keras, transformers: finfo.min everywhere is uniform, the future "
               "included (hf#32390, mlx#2608)", _FILL),
        Choice("NaN", "nn.MultiheadAttention: softmax of -inf alone (pytorch#103749, pytorch#110213)", _FILL),
    )),
    Convention("empty row, -inf", 5, "0", (
        Choice("mean of all values", "-inf clamped to finfo.min first", _FILL),
        Choice("NaN", "jax bias, transformers eager (unsloth#9848)", _FILL),
    )),
    Convention("asking for weights", 5, "changes nothing", (
        Choice("changes empty rows", "keras returns mean(V) without scores and 0 with them",
               "ask for the weights, or leave empty rows out"),
        Choice("changes 16-bit scores", "flax.nnx sow_weights: the path with weights rounds scores to 16 bit",
               "compare with and without weights apart"),
    )),
    Convention("poison", 6, "hidden NaN has no influence", (
        Choice("values leak", "0 * NaN in weights @ value: almost everybody (onnx#8068)",
               "set hidden keys and values to 0 first"),
        Choice("keys and values leak", "NaN + -inf is NaN where the mask is added to the scores",
               "set hidden keys and values to 0 first"),
    )),
    Convention("softcap order", 2, "scale, cap, mask", (
        Choice("mask before cap", "ONNX as first shipped: hidden keys come back at -softcap (onnx#7865, ort#28370)",
               "add the mask after the cap"),
        Choice("cap before scale", "softcap on the raw product (lmdeploy#2842)", "scale the query first"),
        Choice("ignored", "fused kernels without a cap (transformers sdpa)", "take a path that caps"),
    )),
    Convention("sinks", 8, "in the denominator", (
        Choice("ignored", "fused kernels without sinks (unsloth#3142, vllm-metal#550)", "take a path with sinks"),
        Choice("scaled", "the sink as a key, scaled like one", "divide the sinks by the scale"),
        Choice("per KV head", "looked up by n // G", "one logit per query head"),
        Choice("exp(0) for every head", "off-by-one softmax (ONNX Runtime smooth_softmax)", "give the sinks"),
    )),
    Convention("returned weights", 9, "before dropout", (
        Choice("after dropout", "nn.MultiheadAttention, transformers eager (pytorch#42929)", "take them in eval mode"),
    )),
    Convention("16-bit scores", 7, "kept in float32", (
        Choice("rounded to 16 bit", "transformers eager, flax with weights (maxtext#1225, mlx#3119): a float32 "
               "softmax of rounded scores is no better", "compute in float32, or choose a fused path"),
    )),
    Convention("float64", 7, "computed in float64", (
        Choice("float32 inside", "jax.nn, transformers eager (hf#48459)", "allow errors of 1e-6"),
    )),
    Convention("RoPE pairing", 10, "as configured", (
        Choice("the other one", "half against interleaved: HF, NeoX against Meta, GPT-J, GGUF llama (hf#25199, "
               "llama.cpp#2376)", "permute the rows of q_proj with N heads and of k_proj with K heads, "
               "`(N two half) D -> (N half two) D`, or set RopeConfig.pairing"),
        Choice("key rows permuted with N", "one permute for both projections, with the number of query heads "
               "(llama.cpp#3364)", "permute k_proj with K heads"),
    ), layer=True),
    Convention("RoPE positions", 10, "queries at i + offset", (
        Choice("queries at i", "an offset that RoPE does not hear of", "give the positions"),
    ), layer=True),
    Convention("QK-norm order", 11, "before RoPE", (
        Choice("after RoPE", "Hunyuan, torchtune: 0 difference while weights are 1 or equal in pairs (vllm-metal#660)",
               "none by weights alone, unless they are equal in pairs"),
    ), layer=True),
    Convention("norm weights", 11, "as configured", (
        Choice("w for 1 + w", "Gemma's norm weights read as Llama's (hf#29402)", "add 1 to the stored weights"),
        Choice("1 + w for w", "Llama's norm weights read as Gemma's", "subtract 1 from the stored weights"),
    ), layer=True),
    Convention("QK-norm", 11, "root mean square", (
        Choice("LayerNorm", "flax normalize_qk: the mean is subtracted", "none: another function"),
    ), layer=True),
    Convention("biases", 16, "added", (
        Choice("left behind", "a port that forgets them", "load the biases"),
    ), layer=True),
)  # fmt: skip
CONVENTION = MappingProxyType({convention.name: convention for convention in CONVENTIONS})


def chosen(dialect: Dialect, convention: str) -> str:
    """The dialect's choice, the specification's where it says nothing."""
    return dict(dialect).get(convention, CONVENTION[convention].spec)


def single_dialects() -> list[Dialect]:
    """Every alternative alone."""
    return [frozenset({(c.name, other.name)}) for c in CONVENTIONS for other in c.others]


def named(dialect: Dialect) -> str:
    """The dialect in words, in the order of the table; "the specification" where it differs in nothing."""
    words = [f"{name}: {choice}" for name, choice in sorted(dialect, key=lambda pair: list(CONVENTION).index(pair[0]))]
    return " + ".join(words) or "the specification"

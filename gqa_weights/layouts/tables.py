"""How other implementations store one layer's weights: one table each, read by `rules.py`.

Names are relative to the attention module. Axes are those of SPEC; a pattern is read from the canonical tensor to the
foreign one. A layout has a rule for every weight that its implementation can have, and nothing else: what is left over
on either side is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from gqa_spec.rope import Pairing
from gqa_weights.layouts.rules import Layout, Rule, from_canonical, to_canonical

__all__ = ["LAYOUTS", "Layout", "Rule", "from_canonical", "to_canonical"]

SAME = "... -> ..."
HALF: Pairing = "half"
INTERLEAVED: Pairing = "interleaved"


def _renamed(names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Tensors stored as they are, under another name: canonical -> foreign."""
    return _each({name: (foreign, SAME) for name, foreign in names.items()})


def _each(patterns: Mapping[str, tuple[str, str]]) -> tuple[Rule, ...]:
    """One foreign tensor for each canonical one: canonical -> (foreign, pattern)."""
    return tuple(Rule(foreign, ((name, pattern),)) for name, (foreign, pattern) in patterns.items())


def _linears(q: str, k: str, v: str, o: str) -> tuple[Rule, ...]:
    """Linear maps with biases, stored as they are."""
    names = {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": o}
    return _renamed({f"{ours}.{x}": f"{theirs}.{x}" for ours, theirs in names.items() for x in ("weight", "bias")})


def _fused(foreign: str, kind: str, when: str | None = None) -> Rule:
    """[q | k | v]: all rows of q, then those of k, then those of v."""
    pieces = tuple((f"{name}.{kind}", SAME) for name in ("q_proj", "k_proj", "v_proj"))
    return Rule(foreign, pieces, when=when)


def _fused_by_group(foreign: str, kind: str) -> Rule:
    """[G query heads, 1 key head, 1 value head] for each KV head."""
    rows = {"q_proj": "(K G H)", "k_proj": "(K H)", "v_proj": "(K Hv)"}
    heads = {"q_proj": "(G H)", "k_proj": "H", "v_proj": "Hv"}
    pieces = tuple((f"{name}.{kind}", f"{rows[name]} ... -> K {heads[name]} ...") for name in rows)
    return Rule(foreign, pieces, axis=1, then="K rows ... -> (K rows) ...")


def _dense(q: str, k: str, v: str, o: str) -> tuple[Rule, ...]:
    """The kernels of Flax and Keras: input axes first, heads an axis of their own."""
    return _each({
        "q_proj.weight": (f"{q}kernel", "(N H) D -> D N H"),
        "q_proj.bias": (f"{q}bias", "(N H) -> N H"),
        "k_proj.weight": (f"{k}kernel", "(K H) E -> E K H"),
        "k_proj.bias": (f"{k}bias", "(K H) -> K H"),
        "v_proj.weight": (f"{v}kernel", "(K Hv) E -> E K Hv"),
        "v_proj.bias": (f"{v}bias", "(K Hv) -> K Hv"),
        "o_proj.weight": (f"{o}kernel", "D (N Hv) -> N Hv D"),
        "o_proj.bias": (f"{o}bias", SAME),
    })  # fmt: skip


NORMS = _renamed({"q_norm.weight": "q_norm.weight", "k_norm.weight": "k_norm.weight"})
SINKS = _renamed({"sinks": "sinks"})

ONE_HEAD_SIZE = ("Hv == H",)
ONE_BIAS_FLAG = ("qkv_bias == out_bias",)
SELF_ATTENTION = ("E == D",)
MULTI_HEAD = ("K == N",)
HEADS_FILL_WIDTH = ("N * H == D",)

LAYER_NORM = dict.fromkeys(
    ("normalize_qk", "query_ln.scale", "key_ln.scale"), "normalize_qk is a LayerNorm, and canonical norms are RMS"
)

# --- one tensor each -------------------------------------------------------------------------------------------------

GATE = _renamed({"gate_proj.weight": "gate_proj.weight", "gate_proj.bias": "gate_proj.bias"})
CANONICAL = Layout("canonical", _linears("q_proj", "k_proj", "v_proj", "o_proj") + GATE + NORMS + SINKS)

# llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, olmo2, starcoder2, smollm3, gpt_oss
HUGGINGFACE = Layout("huggingface", CANONICAL.rules, pairing=HALF)

# glm, glm4, ernie4_5, helium, cohere2
HUGGINGFACE_INTERLEAVED = Layout("huggingface.interleaved", CANONICAL.rules, pairing=INTERLEAVED)
# qwen3_next, qwen3_5: each query head's rows, then those of its gate
HUGGINGFACE_GATED = Layout(
    "huggingface.gated",
    (
        *(
            Rule(
                f"q_proj.{kind}",
                ((f"q_proj.{kind}", "(N H) ... -> N H ..."), (f"gate_proj.{kind}", "(N Hv) ... -> N Hv ...")),
                axis=1,
                then="N rows ... -> (N rows) ...",
            )
            for kind in ("weight", "bias")
        ),
        *_renamed({f"{x}_proj.{kind}": f"{x}_proj.{kind}" for x in "kvo" for kind in ("weight", "bias")}),
        *NORMS,
    ),
    pairing=HALF,
)
HUNYUAN = Layout(
    "huggingface.hunyuan",
    (
        *_linears("q_proj", "k_proj", "v_proj", "o_proj"),
        *_renamed({"q_norm.weight": "query_layernorm.weight", "k_norm.weight": "key_layernorm.weight"}),
    ),
    pairing=HALF,
)
PHI = Layout("huggingface.phi", _linears("q_proj", "k_proj", "v_proj", "dense"), pairing=HALF)

META_LLAMA = Layout(
    "meta.llama",
    _renamed({
        "q_proj.weight": "wq.weight",
        "k_proj.weight": "wk.weight",
        "v_proj.weight": "wv.weight",
        "o_proj.weight": "wo.weight",
    }),
    pairing=INTERLEAVED,
)  # fmt: skip

GGUF = (
    *_linears("attn_q", "attn_k", "attn_v", "attn_output"),
    *_renamed({
        "q_norm.weight": "attn_q_norm.weight",
        "k_norm.weight": "attn_k_norm.weight",
        "sinks": "attn_sinks.weight",
    }),
)  # fmt: skip
# llama.cpp multiplies by the stored norm weight, so its converter adds Gemma's 1 to it.
GGUF_LLAMA = Layout("gguf.llama", GGUF, pairing=INTERLEAVED, norm_factor="w")
GGUF_QWEN2 = Layout("gguf.qwen2", GGUF, pairing=HALF, norm_factor="w")
GGUF_GEMMA3 = Layout("gguf.gemma3", GGUF, pairing=HALF, norm_factor="w")

NORM_AFTER_ROPE = dict.fromkeys(
    ("q_norm.scale", "k_norm.scale"), "torchtune norms after RoPE, and canonical norms come before"
)
TORCHTUNE_LINEARS = _linears("q_proj", "k_proj", "v_proj", "output_proj")
TORCHTUNE = Layout("torchtune", TORCHTUNE_LINEARS, pairing=INTERLEAVED, requires=ONE_HEAD_SIZE, refuses=NORM_AFTER_ROPE)
# Its Qwen2 and Phi-3 have a RoPE of their own, Qwen2RotaryPositionalEmbeddings and Phi3RotaryPositionalEmbeddings.
TORCHTUNE_QWEN2 = Layout(
    "torchtune.qwen2", TORCHTUNE_LINEARS, pairing=HALF, requires=ONE_HEAD_SIZE, refuses=NORM_AFTER_ROPE
)

X_TRANSFORMERS = Layout(
    "x-transformers",
    _each({
        "q_proj.weight": ("to_q.weight", "(K G H) D -> (G K H) D"),
        "k_proj.weight": ("to_k.weight", SAME),
        "v_proj.weight": ("to_v.weight", SAME),
        "o_proj.weight": ("to_out.weight", "D (K G Hv) -> D (G K Hv)"),
        "sinks": ("attend.head_attn_sink", "(K G) -> (G K)"),
    }),
    pairing=INTERLEAVED,
    head_order="strided",
)  # fmt: skip

# --- q, k and v in one tensor ----------------------------------------------------------------------------------------

PHI3 = Layout(
    "huggingface.phi3",
    (_fused("qkv_proj.weight", "weight"), *_renamed({"o_proj.weight": "o_proj.weight"})),
    pairing=HALF,
    requires=SELF_ATTENTION + ONE_HEAD_SIZE,
)

TORCH_MHA = Layout(
    "torch.nn.MultiheadAttention",
    (
        _fused("in_proj_weight", "weight", when="E == D"),
        *(Rule(f"{x}_proj_weight", ((f"{x}_proj.weight", SAME),), when="E != D") for x in "qkv"),
        _fused("in_proj_bias", "bias"),
        *_renamed({"o_proj.weight": "out_proj.weight", "o_proj.bias": "out_proj.bias"}),
    ),
    requires=MULTI_HEAD + HEADS_FILL_WIDTH + ONE_HEAD_SIZE + ONE_BIAS_FLAG,
    refuses={
        **dict.fromkeys(
            ("add_bias_kv", "bias_k", "bias_v"), "add_bias_kv appends a learned key and value to every sequence"
        ),
        "add_zero_attn": "it appends a key and value of zeros to every sequence",
    },
)

LITGPT = Layout(
    "litgpt",
    (
        _fused("qkv.weight", "weight"),
        _fused("qkv.bias", "bias"),
        *_renamed({
            "o_proj.weight": "proj.weight",
            "o_proj.bias": "proj.bias",
            "q_norm.weight": "norm_q.weight",
            "k_norm.weight": "norm_k.weight",
        }),
    ),
    pairing=HALF,
    requires=SELF_ATTENTION + ONE_HEAD_SIZE,
    refuses={"rope_interleave": "this layout's rows are paired half; read them as canonical rows of interleaved pairs"},
)  # fmt: skip

# EleutherAI's files and Hugging Face's GPTNeoX, which has K = N.
GPT_NEOX = Layout(
    "gpt_neox",
    (
        _fused_by_group("query_key_value.weight", "weight"),
        _fused_by_group("query_key_value.bias", "bias"),
        *_renamed({"o_proj.weight": "dense.weight", "o_proj.bias": "dense.bias"}),
    ),
    pairing=HALF,
    requires=SELF_ATTENTION + HEADS_FILL_WIDTH + ONE_HEAD_SIZE,
)

MEGATRON = Layout(
    "megatron",
    (
        _fused_by_group("linear_qkv.weight", "weight"),
        _fused_by_group("linear_qkv.bias", "bias"),
        *_renamed({
            "o_proj.weight": "linear_proj.weight",
            "o_proj.bias": "linear_proj.bias",
            "q_norm.weight": "q_layernorm.weight",
            "k_norm.weight": "k_layernorm.weight",
        }),
    ),
    pairing=HALF,
    norm_factor="w",
    norm_over="head",
    requires=SELF_ATTENTION + ONE_HEAD_SIZE,
    refuses=dict.fromkeys(
        ("q_layernorm.bias", "k_layernorm.bias"), "a norm with a bias is a LayerNorm, and canonical norms are RMS"
    ),
)  # fmt: skip

# --- heads an axis of their own --------------------------------------------------------------------------------------

FLAX_NNX = Layout(
    "flax.nnx.MultiHeadAttention",
    _dense("query.", "key.", "value.", "out."),
    requires=ONE_HEAD_SIZE + ONE_BIAS_FLAG,
    refuses=LAYER_NORM,
)

FLAX_LINEN = Layout(
    "flax.linen.MultiHeadDotProductAttention",
    FLAX_NNX.rules,
    requires=MULTI_HEAD + ONE_HEAD_SIZE + ONE_BIAS_FLAG,
    refuses=LAYER_NORM,
)

KERAS = Layout(
    "keras.layers.GroupQueryAttention",
    (
        *_dense("query/", "key/", "value/", "attention_output/"),
        *_each(
            {
                "gate_proj.weight": ("gate/kernel", "(N Hv) D -> D N Hv"),
                "gate_proj.bias": ("gate/bias", "(N Hv) -> N Hv"),
            }
        ),
    ),
    requires=ONE_HEAD_SIZE + ONE_BIAS_FLAG,
)

GEMMA = Layout(
    "gemma",
    (
        Rule("q_einsum.w", (("q_proj.weight", "(N H) D -> N D H"),), when="K != N"),
        Rule(
            "kv_einsum.w",
            (("k_proj.weight", "(K H) E -> 1 K E H"), ("v_proj.weight", "(K Hv) E -> 1 K E Hv")),
            when="K != N",
        ),
        Rule(
            "qkv_einsum.w",
            (
                ("q_proj.weight", "(N H) D -> 1 N D H"),
                ("k_proj.weight", "(K H) E -> 1 K E H"),
                ("v_proj.weight", "(K Hv) E -> 1 K E Hv"),
            ),
            when="K == N",
        ),
        *_each({
            "o_proj.weight": ("attn_vec_einsum.w", "D (N Hv) -> N Hv D"),
            "q_norm.weight": ("_query_norm.scale", SAME),
            "k_norm.weight": ("_key_norm.scale", SAME),
        }),
    ),
    pairing=HALF,
    norm_factor="1 + w",
    norm_over="head",
    requires=SELF_ATTENTION + ONE_HEAD_SIZE,
)  # fmt: skip

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        CANONICAL, HUGGINGFACE, HUGGINGFACE_INTERLEAVED, HUGGINGFACE_GATED, HUNYUAN, PHI, PHI3, META_LLAMA, GGUF_LLAMA,
        GGUF_QWEN2, GGUF_GEMMA3, TORCH_MHA, FLAX_NNX, FLAX_LINEN, KERAS, GEMMA, GPT_NEOX, MEGATRON, LITGPT, TORCHTUNE,
        TORCHTUNE_QWEN2, X_TRANSFORMERS,
    )
}  # fmt: skip

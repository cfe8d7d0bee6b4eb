"""The conventions in which implementations of attention differ, by name: the specification's choice and the others.

A dialect maps some conventions to a choice other than the specification's. `kernel.py` and `layer.py` compute in any
dialect; `detect.py` finds the one that an attention follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

Dialect = frozenset[tuple[str, str]]  # (convention, choice), the specification's choices left out
SPEC: Dialect = frozenset()


@dataclass(frozen=True)
class Choice:
    """One way to do it. where: who does it, and who was bitten. remedy: what to do where it meets the specification.
    slip: done by mistake, so that two at once are not looked for.
    """

    name: str
    where: str
    remedy: str
    slip: bool = False


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


def _slip(name: str, where: str, remedy: str) -> Choice:
    return Choice(name, where, remedy, slip=True)


CONVENTIONS = (
    Convention("head order", 1, "contiguous: n // G", (
        Choice("tiled: n % K", "np.tile, .repeat, x-transformers, old ONNX function body (onnx#7274, jax-js#180)",
               "permute query heads, and the rows of q_proj and columns of o_proj: head n takes the place of "
               "(n % G) * K + n // G"),
        Choice("divided by K: n // K", "ONNXim#34; right wherever K equals G, as in 4/2, 9/3, 16/4",
               "divide by N / K, not by K"),
        Choice("keys contiguous, values tiled", "two different repeats in one function", "repeat key and value alike"),
        _slip("from the last: K - 1 - n // G", "a reversed axis", "reverse the KV heads"),
        _slip("KV head 0 for all", "multi-query attention by mistake; a head axis that was broadcast",
              "repeat each KV head G times"),
    )),
    Convention("softmax", 2, "e ** x", (
        _slip("2 ** x", "exp2 without log2(e), as in Triton kernels", "multiply scores and sinks by log2(e)"),
    )),
    Convention("scale", 2, "H ** -0.5", (
        Choice("1", "T5, Gemma 4; an unscaled kernel", "pass scale = H ** -0.5, or multiply the query by it"),
        Choice("Hv ** -0.5", "the head size read off the value", "pass scale"),
        Choice("1 / H", "scaled twice: query and scores", "scale once"),
    )),
    Convention("given scale", 2, "obeyed", (
        Choice("ignored", "always H ** -0.5", "multiply the query by scale * H ** 0.5"),
        Choice("on top of H ** -0.5", "both are multiplied", "multiply the scale by H ** 0.5"),
        _slip("squared", "query and scores both multiplied", "scale once"),
    )),
    Convention("alignment", 4, "bottom-right", (
        Choice("top-left", "PyTorch is_causal, jax, flax, keras, ONNX without a cache (pytorch#108108)",
               "give a mask, tril(diagonal=S - T), for the causal option"),
    )),
    Convention("causal", 4, "j <= i", (
        _slip("j < i, not its own key", "tril(diagonal=-1), or i > j", "write j <= i"),
        _slip("j <= i + 1, one key ahead", "tril(diagonal=1), or triu(diagonal=2) as what is hidden", "write j <= i"),
    )),
    Convention("causal window of W", 4, "W keys, its own counted", (
        Choice("counts neighbours: W + 1 keys", "jax local_window_size, flash-attention window_size=(W, 0), "
               "x-transformers, ONNX left_window_size (hf#39408, vllm#3385, ort#25927)", "pass W - 1"),
        Choice("W - 1 keys", "a cache that holds W - 1 (transformers' rolling cache)", "pass W + 1"),
        _slip("a band, causal forgotten", "a window that replaces the causal mask (jax#39576)", "combine both"),
        Choice("ignored", "a window that is only configured (jax#32300 without a mask)", "pass the window as a mask"),
    )),
    Convention("window without causal", 4, "2 W - 1 keys, a band", (
        Choice("counts neighbours: 2 W + 1 keys", "jax local_window_size=W, flash-attention (W, W)", "pass W - 1"),
        Choice("2 W - 3 keys", "the causal off-by-one on both sides", "pass W + 1"),
        Choice("W keys, the past only", "a window that implies causal (Mistral's)", "pass the band as a mask"),
        Choice("the future open", "a window that only looks back", "bound both sides"),
        Choice("counts neighbours, the future open", "ONNX 25: left_window_size alone",
               "bound both sides, and pass W - 1"),
        Choice("ignored", "a window that counts only with causal", "pass the band as a mask"),
    )),
    Convention("chunk", 4, "floor division", (
        Choice("truncated", "C's and Rust's / on negative positions", "use floor division"),
        _slip("slides with the query", "a chunk taken for a window", "pass the chunk as a mask"),
    )),
    Convention("offset", 4, "obeyed", (
        Choice("ignored", "query i at i + S - T, whatever is given", "pass the mask"),
        _slip("no position before 0", "clamped, as jax.lax.dynamic_slice does", "pass the mask"),
    )),
    Convention("offset of each row", 4, "its own", (
        _slip("the first row's for all", "one length for a whole batch", "pass the mask"),
    )),
    Convention("boolean mask", 3, "True may attend", (
        Choice("True is hidden", "nn.MultiheadAttention, nn.Transformer (pytorch#21518, pytorch#120668)", "pass ~mask"),
        Choice("added as a number", "a boolean given to scores + mask", "pass 0 and -inf"),
        Choice("added as a number, but for padding", "transformers' eager models, which make a bias of a mask "
               "(B, S) and hand on one of four axes", "pass 0 and -inf"),
        Choice("ignored", "a mask that is accepted and not used", "hide keys by another argument"),
    )),
    Convention("floating mask", 3, "added to the scores", (
        Choice("read as boolean", "flax: all but 0 may attend, so 0 / -1e9 attends what it should hide",
               "pass a boolean mask; a bias cannot be given"),
        Choice("finfo.min is hidden", "ONNX Runtime; implementations that use it for -inf (hf#17306, hf#31303)",
               "never use finfo.min as a bias"),
        Choice("ignored", "a mask of another dtype is dropped", "pass a boolean mask"),
        _slip("scaled with the scores", "added before the scale (T5's bias, in a kernel that scales)",
              "divide the mask by the scale"),
        _slip("subtracted", "the distance of ALiBi given for its bias", "pass -mask"),
        _slip("finfo.min overflows", "min + min is -inf, and a row of them NaN (hf#17306, mlx#1725)",
              "never use finfo.min as a bias"),
    )),
    Convention("mask of each row and head", 3, "its own", (
        _slip("the first row's for all", "mask[0], or a mask kept for the whole batch", "split the batch"),
        _slip("the first head's for all", "mask[:, 0], as masks of (B, T, S) are made", "split the heads"),
    )),
    Convention("mask with causal", 3, "both", (
        Choice("causal alone", "the mask is dropped (dia#170, mindone#1229)", "combine both into one mask"),
        Choice("mask alone", "causal is a hint (nn.MultiheadAttention, keras#23038)", "combine both into one mask"),
    )),
    Convention("empty row, boolean", 5, "0", (
        Choice("mean of all values", "jax, flax, keras, transformers: finfo.min everywhere is uniform, the future "
               "included (hf#32390, mlx#2608)", _FILL),
        Choice("NaN", "nn.MultiheadAttention: softmax of -inf alone (pytorch#103749, pytorch#110213)", _FILL),
        _slip("the first value", "an argmax, or a block that starts at key 0", _FILL),
    )),
    Convention("empty row, -inf", 5, "0", (
        Choice("mean of all values", "-inf clamped to finfo.min first", _FILL),
        Choice("NaN", "jax bias, transformers eager (unsloth#9848)", _FILL),
        _slip("the first value", "an argmax, or a block that starts at key 0", _FILL),
    )),
    Convention("asking for weights", 5, "changes nothing", (
        Choice("changes empty rows", "a call that returns mean(V) without scores and 0 with them",
               "leave empty rows out"),
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
        Choice("floating masks before cap", "x-transformers: attn_bias is added before softclamp_logits, a boolean "
               "hides after it", "give booleans"),
        Choice("boolean masks added as numbers", "litgpt's path with attention_logit_softcapping", "give 0 and -inf"),
        Choice("cap before scale", "softcap on the raw product (lmdeploy#2842)", "scale the query first"),
        Choice("ignored", "fused kernels without a cap (transformers sdpa)", "take a path that caps"),
        _slip("clipped, no tanh", "clamp(-softcap, softcap)", "write softcap * tanh(scores / softcap)"),
        _slip("tanh of the score itself", "softcap * tanh(scores)", "divide by the softcap first"),
    )),
    Convention("sinks", 8, "in the denominator", (
        Choice("ignored", "fused kernels without sinks (unsloth#3142, vllm-metal#550)", "take a path with sinks"),
        Choice("scaled", "the sink as a key, scaled like one", "divide the sinks by the scale"),
        _slip("times H ** -0.5", "scaled like a key, whatever the scale", "multiply the sinks by H ** 0.5"),
        _slip("capped", "joined to the scores before the softcap", "join them after it"),
        _slip("dropped with a window", "a sliding path without sinks", "pass the window as a mask"),
        _slip("given to the first key", "a column kept, and shifted by one", "drop the sink's column"),
        Choice("per KV head", "looked up by n // G", "one logit per query head"),
        Choice("exp(0) for every head", "off-by-one softmax (ONNX Runtime smooth_softmax)", "give the sinks"),
    )),
    Convention("returned weights", 9, "before dropout", (
        Choice("after dropout", "nn.MultiheadAttention, transformers eager (pytorch#42929)", "take them in eval mode"),
        Choice("averaged over heads", "nn.MultiheadAttention unless average_attn_weights=False",
               "ask for the weights of each head"),
    )),
    Convention("dropout", 9, "multiplied as given", (
        _slip("kept, not rescaled", "0 and 1 for the multiplier", "divide by 1 - p"),
        Choice("the first head's for all", "flax broadcast_dropout=True", "broadcast_dropout=False"),
    )),
    Convention("16-bit scores", 7, "kept in float32", (
        Choice("rounded to 16 bit", "transformers eager, flax with weights (maxtext#1225, mlx#3119): a float32 "
               "softmax of rounded scores is no better", "compute in float32"),
    )),
    Convention("float64", 7, "computed in float64", (
        Choice("float32 inside", "jax.nn, transformers eager (hf#48459)", "allow errors of 1e-6"),
    )),
    Convention("argument order", 12, "query, key, value", (
        Choice("query, value, key", "keras MultiHeadAttention", "pass key and value by name"),
    ), layer=True),
    Convention("projections", 16, "as named", (
        Choice("query heads strided, (G K)", "x-transformers, read as (K G)", "bring rows of q_proj to (K G H)"),
        Choice("output columns strided, (G K)", "nntile#347", "bring columns of o_proj to (K G Hv)"),
        Choice("groups [q .. q, k, v] read as [Q; K; V]", "Megatron, NeoX, Falcon (gpt-neox#1337, NeMo-RL#2802)",
               "split the fused tensor by groups"),
        Choice("reshaped, not transposed", "a kernel (D, N, H) of Flax or Keras (flax#2011, tiny-llm#41)",
               "transpose: (D, N, H) -> (N H, D)"),
        Choice("output reshaped, not transposed", "a kernel (N, H, D) of Flax or Keras (LWM#65)",
               "transpose: (N, H, D) -> (D, N H)"),
        _slip("heads joined across tokens", "(B, N, T, Hv) reshaped to (B, T, N Hv)", "move the axis of heads first"),
    ), layer=True),
    Convention("stored weights", 16, "as given", (
        Choice("rounded to bfloat16", "a checkpoint saved in 16 bit", "load them in the dtype of the file"),
    ), layer=True),
    Convention("biases", 16, "added", (
        Choice("left behind", "a port that forgets them", "load the biases"),
        Choice("in interleaved order where RoPE rotates halves", "weights permuted, their biases not",
               "permute the biases too"),
        _slip("the output's once per head", "heads projected one by one, each with the bias", "add it once"),
    ), layer=True),
    Convention("RoPE pairing", 10, "as configured", (
        Choice("half, whatever is configured", "Hugging Face, NeoX",
               "permute the rows, `(N half two) D -> (N two half) D`"),
        Choice("interleaved, whatever is configured", "Meta's code, GPT-J",
               "permute the rows, `(N two half) D -> (N half two) D`"),
        Choice("half and interleaved swapped", "HF, NeoX against Meta, GPT-J, GGUF llama "
               "(hf#25199, llama.cpp#2376)", "permute the rows of q_proj with N heads and of k_proj with K heads, "
               "`(N two half) D -> (N half two) D`, or set RopeConfig.pairing"),
        Choice("rows in interleaved order, halves rotated", "rows of Meta's and GGUF's files left as stored (hf#25199)",
               "permute the rows, `(N half two) D -> (N two half) D`"),
        Choice("key rows permuted with N", "one permute for both projections, with the number of query heads "
               "(llama.cpp#3364)", "permute k_proj with K heads"),
    ), layer=True),
    Convention("RoPE rotates", 10, "queries and keys", (
        _slip("keys backwards", "the sign of sin in one of two places", "rotate both alike"),
        _slip("queries only", "keys cached before they are rotated", "rotate the keys"),
        _slip("values too", "one call for the fused projection", "leave the values"),
    ), layer=True),
    Convention("RoPE positions", 10, "queries at i + offset", (
        Choice("queries at i", "an offset that RoPE is not given", "give the positions"),
        _slip("queries counted from one", "a cache whose length already holds the new token", "count both alike"),
    ), layer=True),
    Convention("given positions", 10, "obeyed", (
        Choice("ignored", "accepted and not used", "rotate outside of the layer"),
        _slip("the first row's for all", "positions[0], as tables of cos and sin are made", "split the batch"),
    ), layer=True),
    Convention("RoPE angles", 10, "float32 or finer", (
        Choice("positions in bfloat16", "positions cast with the model (hf#29285, candle#3520)",
               "keep positions and angles in float32"),
        Choice("frequencies in float16", "the buffer cast with the model (hf#25681)", "keep inv_freq in float32"),
    ), layer=True),
    Convention("RoPE frequencies", 10, "theta ** (-2 d / R)", (
        Choice("10000 for theta", "rope_theta left unread", "pass rope_theta"),
        _slip("d counted from one", "arange(1, ..)", "count from 0"),
        _slip("theta ** (-d / R)", "arange(R / 2) / R", "use 2 d"),
    ), layer=True),
    Convention("partial rotary", 10, "the first R dimensions", (
        Choice("the whole head", "rotary_dim left unread", "set rotary_dim"),
        Choice("the last R dimensions", "DeepSeek's layout", "roll the rows of q_proj and k_proj"),
        Choice("rows permuted over the whole head", "a permute without rotary_dim",
               "permute the first R rows of each head"),
    ), layer=True),
    Convention("linear scaling", 10, "divided by the factor", (
        Choice("ignored", "rope_scaling left unread", "read rope_scaling"),
        _slip("multiplied by the factor", "positions stretched", "divide"),
    ), layer=True),
    Convention("dynamic NTK", 10, "by the length", (
        Choice("ignored", "rope_scaling left unread, or the length taken for the original one", "set rope_length"),
        Choice("by the factor alone", "NTK-aware scaling before it was dynamic", "set rope_length"),
    ), layer=True),
    Convention("llama3 scaling", 10, "a ramp between kept and divided", (
        Choice("ignored", "rope_scaling left unread (TransformerLens#910, unsloth#6197, llama.cpp#8676)",
               "read rope_scaling"),
        Choice("all divided", "taken for linear scaling", "read low_freq_factor and high_freq_factor"),
        _slip("no ramp", "a step at low_freq_factor", "interpolate between both"),
    ), layer=True),
    Convention("YaRN", 10, "as in the paper", (
        Choice("ignored", "rope_scaling left unread", "read rope_scaling"),
        _slip("ramp inverted", "fast pairs divided", "divide the slow ones"),
        Choice("truncate=False ignored", "the paper's floor and ceil always; transformers where rope_parameters are "
               "given by layer type, as Gemma 3's", "read truncate"),
        Choice("attention_factor ignored", "always 0.1 log(factor) + 1 (vllm#48351)", "read attention_factor"),
        Choice("no attention factor", "frequencies alone", "multiply cos and sin by it"),
        Choice("ramp inverted, no attention factor", "litgpt unless mscale is given",
               "divide the slow pairs, and multiply cos and sin by the factor"),
        Choice("attention factor on the scores once", "on the query alone", "multiply cos and sin by it"),
    ), layer=True),
    Convention("longrope", 10, "by the length", (
        Choice("ignored", "rope_scaling left unread", "read rope_scaling"),
        Choice("short factors always", "a length taken from the prompt", "set rope_length"),
        Choice("long factors always", "a length taken from the cache", "set rope_length"),
        Choice("attention factor on the scores once", "on the query alone", "multiply cos and sin by it"),
    ), layer=True),
    Convention("QK-norm order", 11, "before RoPE", (
        Choice("after RoPE", "Hunyuan, torchtune: 0 difference while weights are 1 or equal in pairs (vllm-metal#660)",
               "none by weights alone, unless they are equal in pairs"),
    ), layer=True),
    Convention("norm weights", 11, "as configured", (
        Choice("w for 1 + w", "Gemma's norm weights read as Llama's (hf#29402)", "add 1 to the stored weights"),
        Choice("1 + w for w", "Llama's norm weights read as Gemma's", "subtract 1 from the stored weights"),
        Choice("2 + w for 1 + w", "a file that holds 1 + w, read as w (GGUF's Gemma)",
               "subtract 1 from the stored weights"),
        Choice("in interleaved order where RoPE rotates halves", "projections permuted, their norms not",
               "permute the norm weights too"),
    ), layer=True),
    Convention("QK-norm", 11, "root mean square", (
        Choice("LayerNorm", "flax normalize_qk: the mean is subtracted", "replace the norms by root mean square ones"),
        Choice("rms_full head by head", "OLMo 2's norm taken for Qwen 3's", "norm before heads are split"),
        _slip("queries only", "keys normed elsewhere, or nowhere", "norm the keys"),
        _slip("keys by the queries' weights", "one norm for both", "load k_norm"),
        _slip("no epsilon", "x / rms(x)", "add qk_norm_eps under the root"),
    ), layer=True),
    Convention("cached tokens", 13, "as one whole pass", (
        Choice("causal from the first key held", "flax.nnx decode=True with is_causal=True: top-left within the cache",
               "leave is_causal out while decoding: the cache hides what is not there"),
        _slip("rotated from 0", "RoPE positions that start anew in each chunk", "add the cache's length"),
        _slip("a token does not see itself", "read before it is written", "write first"),
    ), layer=True),
    Convention("full cache", 13, "refuses", (
        Choice("goes on without an error", "flax.nnx decode: dynamic_update_slice clamps and overwrites the last slot",
               "count the tokens"),
    ), layer=True),
)  # fmt: skip
CONVENTION = MappingProxyType({convention.name: convention for convention in CONVENTIONS})


def chosen(dialect: Dialect, convention: str) -> str:
    """The dialect's choice, the specification's where it has none."""
    return dict(dialect).get(convention, CONVENTION[convention].spec)


def single_dialects() -> list[Dialect]:
    """Every alternative alone."""
    return [frozenset({(c.name, other.name)}) for c in CONVENTIONS for other in c.others]


def named(dialect: Dialect) -> str:
    """The dialect in words, in the order of the table; "the specification" where it differs in nothing."""
    words = [f"{name}: {choice}" for name, choice in sorted(dialect, key=lambda pair: list(CONVENTION).index(pair[0]))]
    return " + ".join(words) or "the specification"

"""Settings of a config, a layer or a model that contradict each other."""

from __future__ import annotations

from typing import Any

from gqa_spec.checks.values import boolean, integer, is_number, number

MOST_POSITIONS = 2**31 - 1  # positions are 32-bit integers in JAX
MOST_EXPERTS = 100_000  # a false count in a file must not fill the memory


def even(name: str, value: int) -> None:
    if value % 2:
        raise ValueError(f"{name}: expected an even number of dimensions to pair, got {value}")


def divides(name: str, num_kv_heads: int, num_heads: int) -> None:
    if num_heads % num_kv_heads:
        raise ValueError(f"{name}: expected K to divide N = {num_heads}, got {num_kv_heads}")


def splits_width(embed_dim: int, num_heads: int) -> None:
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim: expected N = {num_heads} to divide D = {embed_dim} when head_dim is not given, got {embed_dim}"
        )


def rotary_dim(rotary: int, head_dim: int) -> None:
    if rotary > head_dim:
        raise ValueError(f"rotary_dim: expected at most H = {head_dim}, got {rotary}")
    even("rotary_dim", rotary)


def longrope_factors(scaling: Any, rotary: int) -> None:
    for name in ("short_factor", "long_factor"):
        if len(getattr(scaling, name)) != rotary // 2:
            raise ValueError(
                f"{name}: expected rotary_dim / 2 = {rotary // 2} factors, got {len(getattr(scaling, name))}"
            )


def rolling(window: int | None) -> None:
    if window is None:
        raise ValueError("rolling: expected a window to roll over, got window=None")


def attention_settings(causal: Any, window: Any, chunk: Any, scale: Any, softcap: Any) -> None:
    """causal, window, chunk, scale and softcap of a kernel or a config; a traced scale or softcap is not checked."""
    boolean("causal", causal)
    for name, value in (("window", window), ("chunk", chunk)):
        if value is not None:
            integer(name, value, at_least=1)
            if value > MOST_POSITIONS:
                raise ValueError(f"{name}: expected at most {MOST_POSITIONS}, got {value}; None sees all keys")
    for name, value in (("scale", scale), ("softcap", softcap)):
        if is_number(value) or not hasattr(value, "dtype"):  # torch.compile cannot trace hasattr of its symbolic floats
            number(name, value, above=0, optional=True)


def layer_widths(widths: tuple[int, ...]) -> None:
    if len(set(widths)) > 1:
        raise ValueError(f"attention: expected one embed_dim D for all layers, got {sorted(set(widths))}")


def model_ends(vocab_size: Any, input_dim: Any, output: str, tied: bool) -> None:
    """Tokens or vectors in, one of the two; logits need a vocabulary, a tied head needs an embedding."""
    if (vocab_size is None) == (input_dim is None):
        raise ValueError(f"vocab_size, input_dim: expected one of the two, got {vocab_size} and {input_dim}")
    for name, value in (("vocab_size", vocab_size), ("input_dim", input_dim)):
        if value is not None:
            integer(name, value, at_least=1)
    if vocab_size is None and (output == "logits" or tied):
        raise ValueError("vocab_size: expected a vocabulary for output='logits' and for tied=True, got None")


def norm_bias(norm: str, bias: bool) -> None:
    if bias and not norm.startswith("layer"):
        raise ValueError(f"norm_bias: expected norm='layer', got norm={norm!r}")


def norm_after_rope(after: bool, qk_norm: str | None, rope: Any) -> None:
    if after and (qk_norm is None or rope is None):
        raise ValueError("qk_norm_after_rope: expected a qk_norm and a rope, got None")


def query_scale(beta: float | None, length: int | None) -> None:
    if (beta is None) != (length is None):
        raise ValueError(f"query_scale_beta, query_scale_length: expected both or neither, got {beta} and {length}")
    if beta is not None:
        number("query_scale_beta", beta, at_least=0)
        integer("query_scale_length", length, at_least=1)


def parallel_norms(parallel: str | None, placement: str) -> None:
    if parallel is not None and placement != "pre":
        raise ValueError(f"parallel: expected norm_placement='pre' for {parallel!r}, got {placement!r}")


def head_bias(bias: bool, own_head: bool) -> None:
    if bias and not own_head:
        raise ValueError("head_bias: expected a head of its own, output='logits' and tied=False")


def experts_per_token(chosen: int, experts: int) -> None:
    if chosen > experts:
        raise ValueError(f"num_experts_per_token: expected at most X = {experts}, got {chosen}")


def clamped_swiglu(limit: float | None, alpha: float | None) -> None:
    if (limit is None) != (alpha is None):
        raise ValueError(f"swiglu_limit, swiglu_alpha: expected both or neither, got {limit} and {alpha}")
    for name, value in (("swiglu_limit", limit), ("swiglu_alpha", alpha)):
        number(name, value, above=0, optional=True)


def shared_gate(gate: bool, size: int | None) -> None:
    if gate and size is None:
        raise ValueError("shared_gate: expected a shared_size, got None")


def experts(config: Any, num_layers: int, gated: bool) -> None:
    """What a model has to be to have experts."""
    if not gated:
        raise ValueError("experts: expected gated=True, got False: each expert is a gated feed-forward")
    if config.dense_layers and max(config.dense_layers) >= num_layers:
        raise ValueError(f"dense_layers: expected layers below {num_layers}, got {max(config.dense_layers)}")
    if config.num_experts * num_layers > MOST_EXPERTS:
        raise ValueError(f"num_experts: expected at most {MOST_EXPERTS} in all layers, got X = {config.num_experts}")


def uncut_experts(tensor: int, num_experts: int) -> None:
    if tensor > 1:
        raise ValueError(
            f"tensor: expected 1 for a model with experts, which are not cut, got {tensor} and X = {num_experts}"
        )


def no_experts(config: Any) -> None:
    """What only models without experts can do."""
    experts = getattr(config, "experts", None)
    if experts is not None:
        raise ValueError(f"config: expected a model without experts to place on a mesh, got X = {experts.num_experts}")


def rope(value: Any, kind: Any) -> None:
    if not (value is None or isinstance(value, kind)):
        raise TypeError(
            f"rope: expected a RopeConfig (from gqa_spec import RopeConfig), True or None, got {type(value).__name__}"
        )

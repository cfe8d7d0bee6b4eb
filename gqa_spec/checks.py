"""One sentence for each kind of bad input, raised before any arithmetic. Every backend raises the same text.

Arrays are only asked for `.shape` and `.dtype`, so the same check serves NumPy, PyTorch and JAX, traced or not. Wrong
shapes and settings are a ValueError, wrong types and dtypes a TypeError (SPEC 14).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np

FLOATING = ("float16", "bfloat16", "float32", "float64")
WIDER = {  # the dtypes that hold every value of the key exactly
    "float16": ("float16", "float32", "float64"),
    "bfloat16": ("bfloat16", "float32", "float64"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}

Shape = tuple[int, ...]
Settings = Mapping[str, Any]


# --- settings ------------------------------------------------------------------------------------------------------


def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def integer(name: str, value: Any, *, at_least: int, symbol: str = "") -> None:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name}: expected {symbol or name} >= {at_least}, got {value}")


def number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    if optional and value is None:
        return
    if not is_number(value):
        raise TypeError(f"{name}: expected a number{' or None' if optional else ''}, got {value!r}")
    bounds = [f">= {at_least}"] * (at_least is not None) + [f"> {above}"] * (above is not None)
    bounds += [f"< {below}"] * (below is not None)
    inside = (at_least is None or value >= at_least) and (above is None or value > above)
    finite = -math.inf < value < math.inf  # not math.isfinite, which torch.compile cannot ask of its floats
    if not (finite and inside and (below is None or value < below)):
        raise ValueError(f"{name}: expected a finite number {' and '.join(bounds)}, got {value}")


def boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def choice(name: str, value: Any, allowed: tuple[str, ...], *, optional: bool = False) -> None:
    if not (value in allowed or (optional and value is None)):
        raise ValueError(f"{name}: expected {', '.join(allowed)}{' or None' if optional else ''}, got {value!r}")


def instance(name: str, value: Any, kind: Any, *, optional: bool = False) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        names = " or ".join(k.__name__ for k in getattr(kind, "__args__", (kind,)))
        raise TypeError(f"{name}: expected {names}{' or None' if optional else ''}, got {type(value).__name__}")


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
    """causal, window, chunk, scale and softcap of a kernel or a config; a traced scale or softcap passes unseen."""
    boolean("causal", causal)
    for name, value in (("window", window), ("chunk", chunk)):
        if value is not None:
            integer(name, value, at_least=1)
    for name, value in (("scale", scale), ("softcap", softcap)):
        if is_number(value) or not hasattr(value, "dtype"):  # torch.compile cannot ask its floats for a dtype
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
    if bias and norm != "layer":
        raise ValueError(f"norm_bias: expected norm='layer', got norm={norm!r}")


# --- arrays --------------------------------------------------------------------------------------------------------


def dtype_name(array: Any) -> str:
    """`float32` for NumPy's, JAX's and PyTorch's float32 alike."""
    dtype = array.dtype
    return _numpy_name(dtype) if isinstance(dtype, np.dtype) else str(dtype).removeprefix("torch.")


@lru_cache
def _numpy_name(dtype: np.dtype[Any]) -> str:
    """NumPy spells it anew at each call, which costs a decoded token more than all other checks."""
    return str(dtype)


def is_integer_dtype(array: Any) -> bool:
    return dtype_name(array).startswith(("int", "uint"))


def array(name: str, value: Any, kind: Any) -> None:
    """value is one of the backend's own arrays."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected an array of this backend, got {type(value).__name__}")


def floating(name: str, value: Any) -> None:
    if dtype_name(value) not in FLOATING:
        raise TypeError(f"{name}: expected a dtype of {', '.join(FLOATING)}, got {dtype_name(value)}")


def same_dtype(name: str, value: Any, owner: str, expected: str) -> None:
    if dtype_name(value) != expected:
        raise TypeError(f"{name}: expected {owner} dtype {expected}, got {dtype_name(value)}")


def shape(name: str, got: Shape, axes: str, known: Mapping[str, int]) -> None:
    """got has the axes that `axes` spells, e.g. "B K S H", with the sizes known so far."""
    got, symbols = tuple(got), axes.split()
    pattern = f"({', '.join(symbols)}{',' * (len(symbols) == 1)})"
    if len(got) != len(symbols):
        raise ValueError(f"{name}: expected {len(symbols)} axes {pattern}, got {got}")
    for symbol, size in zip(symbols, got, strict=True):
        if size != known.get(symbol, size):
            sizes = ", ".join(f"{s} = {known[s]}" for s in symbols if s in known)
            raise ValueError(f"{name}: expected {pattern} with {sizes}, got {got}: axis {symbol} is {size}")


def broadcastable(name: str, got: Shape, axes: str, full: Shape) -> None:
    got = tuple(got)
    if len(got) != len(full) or any(size not in (1, limit) for size, limit in zip(got, full, strict=True)):
        raise ValueError(f"{name}: expected a shape that broadcasts to ({axes}) = {full}, got {got}")


def mask(value: Any, kind: Any, full: Shape) -> None:
    """A mask is boolean or floating, exactly (T, S) or 4-D and broadcastable to (B, N, T, S) (SPEC 3)."""
    array("mask", value, kind)
    if dtype_name(value) != "bool" and dtype_name(value) not in FLOATING:
        raise TypeError(
            "mask: expected bool (True = may attend) or a floating dtype (added to the scores), "
            f"got {dtype_name(value)}"
        )
    got = tuple(value.shape)
    two = got == full[2:]
    four = len(got) == 4 and all(size in (1, limit) for size, limit in zip(got, full, strict=True))
    if not (two or four):
        hint = ": write mask[:, None]" if len(got) == 3 else ""
        raise ValueError(
            f"mask: expected (T, S) = {full[2:]} or 4 axes that broadcast to (B, N, T, S) = {full}, got {got}{hint}"
        )


def offset(value: Any, kind: Any, batch_size: int) -> None:
    """One integer, or an integer array () or (B,)."""
    if value is None or is_integer(value):
        return
    if not isinstance(value, kind) or not is_integer_dtype(value):
        got = dtype_name(value) if isinstance(value, kind) else repr(value)
        raise TypeError(f"offset: expected an integer or an integer array, got {got}")
    if tuple(value.shape) not in ((), (batch_size,)):
        raise ValueError(f"offset: expected one integer or (B,) = ({batch_size},), got {tuple(value.shape)}")


def positions(name: str, value: Any, kind: Any, batch_size: int, length: int, symbol: str) -> None:
    """An integer array (T,) or (B, T); (S,) or (B, S) for keys."""
    array(name, value, kind)
    if not is_integer_dtype(value):
        raise TypeError(f"{name}: expected an integer dtype, got {dtype_name(value)}")
    if tuple(value.shape) not in ((length,), (batch_size, length)):
        raise ValueError(
            f"{name}: expected ({symbol},) = ({length},) or (B, {symbol}) = ({batch_size}, {length}), "
            f"got {tuple(value.shape)}"
        )


def attention(query: Any, key: Any, value: Any, mask_: Any, kind: Any, settings: Settings) -> None:
    """Every argument of `grouped_query_attention`; `kind` is the backend's array class, `settings` the keywords."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        array(name, x, kind)
        floating(name, x)
        same_dtype(name, x, "the query's", dtype_name(query))
    shape("query", query.shape, "B N T H", {})
    batch, heads, queries, head_dim = query.shape
    shape("key", key.shape, "B K S H", {"B": batch, "H": head_dim})
    kv_heads, keys = key.shape[1:3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"key: expected K to divide N = {heads}, got {tuple(key.shape)}: axis K is {kv_heads}")
    shape("value", value.shape, "B K S Hv", {"B": batch, "K": kv_heads, "S": keys})
    attention_settings(
        settings["causal"], settings["window"], settings["chunk"], settings["scale"], settings["softcap"]
    )
    full = (batch, heads, queries, keys)
    if mask_ is not None:
        mask(mask_, kind, full)
    offset(settings["offset"], kind, batch)
    sinks, multiplier = settings["sinks"], settings["dropout_multiplier"]
    if sinks is not None:
        array("sinks", sinks, kind)
        floating("sinks", sinks)
        shape("sinks", sinks.shape, "N", {"N": heads})
    if multiplier is not None:
        array("dropout_multiplier", multiplier, kind)
        floating("dropout_multiplier", multiplier)
        broadcastable("dropout_multiplier", multiplier.shape, "B, N, T, S", full)


def layer_call(
    config: Any, dtype: str, query: Any, key: Any, value: Any, mask_: Any, kind: Any, settings: Settings
) -> None:
    """Every argument of a layer's call; `dtype` is the one that the layer computes in, `settings` the keywords."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        array(name, x, kind)
        floating(name, x)
        same_dtype(name, x, "the layer's", dtype)
    shape("query", query.shape, "B T D", {"D": config.embed_dim})
    batch, queries = query.shape[:2]
    shape("key", key.shape, "B S E", {"B": batch, "E": config.kv_dim})
    keys = key.shape[1]
    shape("value", value.shape, "B S E", {"B": batch, "S": keys, "E": config.kv_dim})
    if mask_ is not None:
        mask(mask_, kind, (batch, config.num_heads, queries, keys))
    offset(settings["offset"], kind, batch)
    for name, length, symbol in (("positions", queries, "T"), ("key_positions", keys, "S")):
        if settings[name] is not None:
            if config.rope is None:
                raise ValueError(f"{name}: expected None for a layer without rope, whose positions rotate nothing")
            positions(name, settings[name], kind, batch, length, symbol)
    if settings["rope_length"] is not None:
        integer("rope_length", settings["rope_length"], at_least=1)


# --- caches --------------------------------------------------------------------------------------------------------


def cacheable(config: Any) -> None:
    """A layer whose earlier tokens never change: it is causal, and attends to itself (SPEC 13)."""
    if not config.causal:
        raise ValueError("cache: expected a layer with causal=True, got causal=False")
    if config.kv_dim != config.embed_dim:
        raise ValueError(f"cache: expected self-attention, E = D = {config.embed_dim}, got E = {config.kv_dim}")


def init_cache(config: Any, batch_size: Any, max_length: Any, rolling_: Any) -> None:
    """Every argument of a layer's `init_cache`, but for the dtype."""
    cacheable(config)
    integer("batch_size", batch_size, symbol="B", at_least=0)
    integer("max_length", max_length, at_least=1)
    boolean("rolling", rolling_)
    if rolling_:
        rolling(config.window)


def extend(config: Any, x: Shape, keys: Shape, values: Shape, rolling_: bool) -> None:
    """x and the cache that a layer's `extend` is given, by their shapes."""
    cacheable(config)
    shape("x", x, "B T D", {"D": config.embed_dim})
    known = {"B": x[0], "K": config.num_kv_heads, "H": config.head_dim, "Hv": config.v_head_dim}
    shape("cache.keys", keys, "B K C H", known | ({"C": config.window} if rolling_ else {}))
    shape("cache.values", values, "B K C Hv", known | {"C": keys[2]})


def cache_lengths(value: Any, kind: Any, batch_size: int) -> None:
    """lengths of a layer's `extend`: how many tokens of each row are real."""
    array("lengths", value, kind)
    if not is_integer_dtype(value):
        raise TypeError(f"lengths: expected an integer dtype, got {dtype_name(value)}")
    shape("lengths", value.shape, "B", {"B": batch_size})


def cache_lengths_in_chunk(lengths: Iterable[int], chunk: int) -> None:
    for row, length in enumerate(lengths):
        if not 0 <= length <= chunk:
            raise ValueError(f"lengths: expected 0 <= length <= T = {chunk}, got {length} in row {row}")


def cache_room(capacity: int, lengths: Iterable[int], chunks: Iterable[int]) -> None:
    """Each row's tokens so far and its new ones fit."""
    for row, (length, chunk) in enumerate(zip(lengths, chunks, strict=True)):
        if length + chunk > capacity:
            raise ValueError(
                f"cache: expected length + chunk <= capacity = {capacity}, "
                f"got length {length} + chunk {chunk} in row {row}"
            )


def cache_unspent(spent: bool) -> None:
    """Where extend writes in place, a handle serves once."""
    if spent:
        raise ValueError(
            "cache: expected the handle that the last extend returned, got one already extended: "
            "clone() a cache first to extend it twice"
        )


# --- weights -------------------------------------------------------------------------------------------------------


def weights(given: Mapping[str, Any], expected: Mapping[str, Shape], symbols: Mapping[str, str], dtype: str) -> None:
    """Every missing, extra and misshapen name at once, then every dtype that `dtype` cannot hold exactly."""
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    problems += [
        f"{name} expected ({symbols[name]}) = {expected[name]}, got {tuple(given[name].shape)}"
        for name in expected
        if name in given and tuple(given[name].shape) != expected[name]
    ]
    if problems:
        raise ValueError(f"weights: {_listed(problems)}")
    narrow = [f"{name} is {dtype_name(x)}" for name, x in given.items() if dtype not in WIDER.get(dtype_name(x), ())]
    if narrow:
        raise TypeError(f"weights: expected dtypes that {dtype} holds exactly: {_listed(narrow)}")


def _listed(problems: Iterable[str]) -> str:
    return "; ".join(problems)


# --- head surgery --------------------------------------------------------------------------------------------------


def pooled_heads(num_kv_heads: Any, heads: int) -> None:
    integer("num_kv_heads", num_kv_heads, symbol="K'", at_least=1)
    if heads % num_kv_heads:
        raise ValueError(f"num_kv_heads: expected K' to divide K = {heads}, got {num_kv_heads}")


def expanded_heads(num_kv_heads: Any, heads: int, num_heads: int) -> None:
    integer("num_kv_heads", num_kv_heads, symbol="K'", at_least=1)
    if num_kv_heads % heads or num_heads % num_kv_heads:
        raise ValueError(
            f"num_kv_heads: expected K = {heads} to divide K', and K' to divide N = {num_heads}, got {num_kv_heads}"
        )


def head_ranks(rank: Any, ranks: Any, num_heads: int) -> None:
    """One of `ranks` tensor-parallel parts, with as many query heads as every other."""
    integer("ranks", ranks, at_least=1)
    if num_heads % ranks:
        raise ValueError(f"ranks: expected ranks to divide N = {num_heads}, got {ranks}")
    integer("rank", rank, at_least=0)
    if rank >= ranks:
        raise ValueError(f"rank: expected rank < ranks = {ranks}, got {rank}")


def sliceable(config: Any) -> None:
    if config.qk_norm == "rms_full":
        raise ValueError(
            "qk_norm: expected a norm of each head, got 'rms_full', which is over all heads: "
            "a rank that holds some of them cannot compute it"
        )


def rope_is_on(name: str, rope: Any) -> None:
    if rope is None:
        raise ValueError(f"{name}: expected a config with rope, got rope=None, which pairs nothing")


# --- models --------------------------------------------------------------------------------------------------------


def model_input(config: Any, dtype: str, x: Any, kind: Any) -> None:
    """What a model is called with: tokens, an integer array (B, T), or vectors (B, T, I) of its dtype."""
    name = "tokens" if config.input_dim is None else "vectors"
    array(name, x, kind)
    if config.input_dim is not None:
        floating(name, x)
        same_dtype(name, x, "the model's", dtype)
        shape(name, x.shape, "B T I", {"I": config.input_dim})
    elif not is_integer_dtype(x):
        raise TypeError(f"tokens: expected an integer dtype, got {dtype_name(x)}")
    else:
        shape(name, x.shape, "B T", {})
    if x.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one token, T >= 1, got {tuple(x.shape)}")


def token_ids(lowest: int, highest: int, vocab_size: int) -> None:
    if lowest < 0 or highest >= vocab_size:
        got = lowest if lowest < 0 else highest
        raise ValueError(f"tokens: expected 0 <= token < V = {vocab_size}, got {got}")


def model_cache(caches: Any, num_layers: int, kind: Any) -> None:
    """One cache for each layer, as `init_cache` gives them."""
    if not isinstance(caches, tuple) or len(caches) != num_layers:
        got = f"{len(caches)} of them" if isinstance(caches, tuple) else type(caches).__name__
        raise ValueError(f"cache: expected a tuple of one cache for each of {num_layers} layers, got {got}")
    for cache in caches:
        instance("cache", cache, kind)


def prompts(value: Any, config: Any, max_new_tokens: int) -> None:
    """A list of non-empty lists of token ids that leave room for the new ones in the model's context."""
    if config.output != "logits" or config.vocab_size is None:
        raise ValueError(f"generate: expected a model with output='logits', got output={config.output!r}")
    if not isinstance(value, list | tuple) or not value or not all(isinstance(row, list | tuple) for row in value):
        raise TypeError("prompts: expected a list of lists of token ids, at least one")
    for row, tokens in enumerate(value):
        if not tokens:
            raise ValueError(f"prompts: expected at least one token, got an empty prompt in row {row}")
        for token in tokens:
            integer("token", token, at_least=0)
        token_ids(min(tokens), max(tokens), config.vocab_size)
        if config.max_length is not None and len(tokens) + max_new_tokens > config.max_length:
            raise ValueError(
                f"prompts: expected length + max_new_tokens <= max_length = {config.max_length}, the model's context, "
                f"got {len(tokens)} + {max_new_tokens} in row {row}"
            )


def uniforms(value: Any, rows: int, max_new_tokens: int) -> None:
    """Numbers from [0, 1), one for each new token."""
    shape("uniforms", value.shape, "B tokens", {"B": rows, "tokens": max_new_tokens})
    if value.size and not (value.min() >= 0 and value.max() < 1):
        raise ValueError(f"uniforms: expected 0 <= u < 1, got {value.min()} to {value.max()}")


def top_p(value: Any) -> None:
    number("top_p", value, above=0)
    if value > 1:
        raise ValueError(f"top_p: expected a number > 0 and <= 1, got {value}")


# --- layouts -------------------------------------------------------------------------------------------------------


def not_refused(layout: str, given: Iterable[str], refused: Mapping[str, str]) -> None:
    found = [f"{name}: {refused[name]}" for name in given if name in refused]
    if found:
        raise ValueError(f"{layout}: cannot express {_listed(found)}")


def expressible(layout: str, condition: str, holds: bool, values: Mapping[str, Any]) -> None:
    if not holds:
        got = ", ".join(f"{name} = {x}" for name, x in values.items())
        raise ValueError(f"{layout}: expected {condition}, got {got}")


def placed(layout: str, names: Iterable[str], places: Iterable[str]) -> None:
    unmapped_modules = [name for name in names if name not in places]
    if unmapped_modules:
        raise ValueError(f"{layout}: has no place for {', '.join(unmapped_modules)}")


def one_dtype(name: str, dtypes: Mapping[str, str]) -> None:
    """Tensors that are stored as one."""
    if len(set(dtypes.values())) > 1:
        got = ", ".join(f"{x} for {ours}" for ours, x in dtypes.items())
        raise TypeError(f"{name}: expected one dtype for the tensors in it, got {got}")

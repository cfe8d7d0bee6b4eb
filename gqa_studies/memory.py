"""How much memory a KV cache takes, and what fewer KV heads save: arithmetic, no measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from gqa_spec import AttentionConfig, checks
from gqa_spec.sizes import model_kv_cache_bytes
from gqa_studies.published_models import PUBLISHED

KIBIBYTE, MEBIBYTE, GIBIBYTE = 2**10, 2**20, 2**30
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
LLAMA_7B = {"layers": 32, "heads": 32, "d_k": 128}
VARIANTS = {"MHA-32": 32, "GQA-8": 8, "GQA-4": 4, "MQA": 1}  # name -> KV heads


def calculate_kv_cache_size(
    num_layers: int, num_kv_heads: int, seq_len: int, d_k: int, batch_size: int = 1, bytes_per_element: int = 4
) -> int:
    """Bytes: 2 (keys and values) * layers * batch * KV heads * positions * head size * bytes of a number.

    Raises TypeError and ValueError for what is no count.
    """
    counts = {
        "num_layers": num_layers,
        "num_kv_heads": num_kv_heads,
        "d_k": d_k,
        "batch_size": batch_size,
        "bytes_per_element": bytes_per_element,
    }
    for name, count in counts.items():
        checks.integer(name, count, at_least=1)
    checks.integer("seq_len", seq_len, at_least=0)
    return 2 * num_layers * batch_size * num_kv_heads * seq_len * d_k * bytes_per_element


@dataclass(frozen=True)
class Saving:
    """One variant at one length, LLaMA-7B's size, one batch row. saved: the share of MHA's cache."""

    variant: str
    num_kv_heads: int
    seq_len: int
    mebibytes_2_bytes: float
    mebibytes_4_bytes: float
    saved: float


def savings(seq_lengths: Iterable[int] = LENGTHS) -> list[Saving]:
    def mebibytes(kv_heads: int, length: int, size: int) -> float:
        bytes_ = calculate_kv_cache_size(LLAMA_7B["layers"], kv_heads, length, LLAMA_7B["d_k"], bytes_per_element=size)
        return bytes_ / MEBIBYTE

    return [
        Saving(name, K, length, mebibytes(K, length, 2), mebibytes(K, length, 4), 1 - K / LLAMA_7B["heads"])
        for length in seq_lengths
        for name, K in VARIANTS.items()
    ]


@dataclass(frozen=True)
class Need:
    """What one model's cache needs. Layers with a window stop growing, so a token costs more before it is full.

    longest: the context that fits the given memory; None where any does.
    """

    model: str
    layers: int
    windowed_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int | None
    kibibytes_per_token: float
    kibibytes_per_token_once_windows_are_full: float
    mebibytes_at_max_length: float | None
    longest: int | None


def cache_bytes(attention: Sequence[AttentionConfig], length: int, *, batch_size: int = 1, element: float = 2) -> float:
    """All layers' caches at `length` positions; a layer with a window holds no more than that. element: its bytes."""
    return element * model_kv_cache_bytes(attention, length, batch_size=batch_size, bytes_per_element=1, rolling=True)


def longest_context(
    attention: Sequence[AttentionConfig], memory: float, *, batch_size: int = 1, element: float = 2
) -> int | None:
    """The most positions whose cache takes at most `memory` bytes; None if any number does."""

    def fits(length: int) -> bool:
        return cache_bytes(attention, length, batch_size=batch_size, element=element) <= memory

    if all(layer.window for layer in attention) and fits(max(layer.window or 0 for layer in attention)):
        return None
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def need(
    name: str,
    attention: Sequence[AttentionConfig],
    max_length: int | None,
    memory: float,
    *,
    batch_size: int = 1,
    element: float = 2,
) -> Need:
    def size(layers: Sequence[AttentionConfig], length: int) -> float:
        return cache_bytes(layers, length, batch_size=batch_size, element=element)

    endless = [layer for layer in attention if layer.window is None]
    return Need(
        name,
        len(attention),
        len(attention) - len(endless),
        attention[0].num_heads,
        attention[0].num_kv_heads,
        attention[0].head_dim,
        max_length,
        size(attention, 1) / KIBIBYTE,
        size(endless, 1) / KIBIBYTE,
        None if max_length is None else size(attention, max_length) / MEBIBYTE,
        longest_context(attention, memory, batch_size=batch_size, element=element),
    )


def models(names: Sequence[str]) -> Mapping[str, tuple[tuple[AttentionConfig, ...], int | None]]:
    """Each name -> its layers and its longest context. A name is a known model's, in any case, or a checkpoint's path.

    Raises ValueError for a name that is neither.
    """
    lower = {name.lower(): name for name in PUBLISHED}
    found: dict[str, tuple[tuple[AttentionConfig, ...], int | None]] = {}
    for name in names:
        if name.lower() in lower:
            known = PUBLISHED[lower[name.lower()]]
            found[lower[name.lower()]] = known.attention, known.max_length
        elif Path(name).exists():
            found[Path(name).name] = _checkpoint(name)
        else:
            nearest = get_close_matches(name.lower(), lower, n=1)
            hint = f"; did you mean {lower[nearest[0]]}?" if nearest else ""
            listed = ", ".join(PUBLISHED)
            raise ValueError(f"--model: expected a checkpoint's path or one of {listed}, got {name!r}{hint}")
    return found


def _checkpoint(path: str) -> tuple[tuple[AttentionConfig, ...], int | None]:
    from gqa_weights.checkpoint import open_checkpoint
    from gqa_weights.families import read_config

    config = read_config(open_checkpoint(path))
    return config.attention, config.max_length

"""Functions of inference kernels: sequences packed in one array, and keys in the blocks of a paged cache.

    attention_packed(query, key, value, cu_seqlens_q, cu_seqlens_k, ...)
    attention_paged(query, key_cache, value_cache, block_tables, cache_lengths, ...)

A parameter for the starts of sequences, or for a table of blocks, makes a function one of these. Packed: query
(total T, N, H), key (total S, K, H), value (total S, K, Hv), starts (B + 1,) -> (total T, N, Hv). Paged: query
(B, T, N, H), or packed if there are starts of queries; caches (blocks, slots, K, H) and (blocks, slots, K, Hv).
Causal is bottom-right in each sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from conformance.cases.inputs import Call
from conformance.cases.sequences import SequenceCase, Sequences, pages
from conformance.targets.binding import NAMES, OF_CALL, Binding, binding
from conformance.targets.callables import TargetFunction, answered, gradients_of
from conformance.targets.limits import Limits
from conformance.targets.protocol import Unsupported

Array = np.ndarray
STARTS: Mapping[str, tuple[str, ...]] = {
    "cu_seqlens_q": ("cu_seqlens", "cu_seq_q", "cu_seqlens_query", "query_start_loc"),
    "cu_seqlens_k": ("cu_seq_k", "cu_seqlens_kv", "cu_seqlens_key"),
    "max_seqlen_q": ("max_seqlen", "max_q", "max_query_len", "max_seqlen_query"),
    "max_seqlen_k": ("max_k", "max_seqlen_kv", "max_seqlen_key", "max_seq_len"),
}
TABLES: Mapping[str, tuple[str, ...]] = {
    "block_tables": ("block_table", "page_table", "page_tables"),
    "cache_lengths": ("cache_seqlens", "context_lens", "context_lengths", "seq_lens", "seqused_k", "cache_lens"),
}
OF_CACHE: Mapping[str, tuple[str, ...]] = {"key": ("key_cache", "k_cache"), "value": ("value_cache", "v_cache")}
OF_SEQUENCES = {
    **{role: (*names, *OF_CACHE.get(role, ())) for role, names in OF_CALL.items()},
    **STARTS,
    **TABLES,
}


def kind_of(function: Any) -> Literal["packed", "paged"] | None:
    """What the names of its parameters say a function is."""
    found = binding(function, OF_SEQUENCES, NAMES)
    roles = {*found.positional, *found.named}
    return "paged" if "block_tables" in roles else "packed" if "cu_seqlens_q" in roles else None


@dataclass(frozen=True)
class SequenceFunction(TargetFunction):
    """A packed or paged function. As any function it is called with a batch, whose rows become sequences."""

    kind: Literal["packed", "paged"] = "packed"

    @cached_property
    def binding(self) -> Binding:
        found = binding(self.function, OF_SEQUENCES, NAMES)
        return replace(found, positional=found.positional[:3])  # a whole number by its place would be traced by JAX

    def __call__(self, call: Call) -> tuple[Array, None]:
        B, _, T, _ = call.query.shape
        return rows(self.outputs(*of_batch(self.kind, call)), B, T), None

    def outputs(self, case: SequenceCase, found: Sequences) -> Array:
        """(total T, N, Hv)."""
        output, _ = answered(self, self.laid_out(case, found))
        return output.reshape(-1, *output.shape[2:]) if output.ndim == 4 else output

    def gradients(self, call: Call, d_output: Array) -> dict[str, Array]:
        if self.kind == "paged":
            raise Unsupported("a paged cache has no gradients")
        B = call.query.shape[0]
        found = gradients_of(self, self.laid_out(*of_batch(self.kind, call)), _packed(d_output))
        lengths = {"query": call.query.shape[2], "key": call.key.shape[2], "value": call.key.shape[2]}
        return {name: rows(x, B, lengths[name]) if name in lengths else x for name, x in found.items()}

    def laid_out(self, case: SequenceCase, found: Sequences) -> Call:
        """The call in the function's own arrays.

        Raises:
            Unsupported: where it has no parameter for what the case needs.
        """
        T, S = np.diff(found.query_starts), np.diff(found.key_starts)
        more = {"max_seqlen_q": int(T.max()), "max_seqlen_k": int(S.max())}
        keywords = {name: x for name, x in more.items() if self.binding.takes(name)} | found.settings
        if self.kind == "packed":
            return Call(found.query, found.key, found.value, None, keywords | self._starts(found))
        held = pages(case, found)
        query = found.query
        if self.binding.takes("cu_seqlens_q"):
            keywords["cu_seqlens_q"] = found.query_starts
        elif len(set(T)) > 1:
            raise Unsupported("takes no cu_seqlens_q")
        else:
            query = query.reshape(len(T), T[0], *query.shape[1:])
        keywords |= {"block_tables": held.tables, "cache_lengths": held.lengths}
        return Call(query, held.key, held.value, None, keywords)

    def _starts(self, found: Sequences) -> dict[str, Array]:
        starts = {"cu_seqlens_q": found.query_starts, "cu_seqlens_k": found.key_starts}
        if not self.binding.takes("cu_seqlens_k") and np.array_equal(found.query_starts, found.key_starts):
            del starts["cu_seqlens_k"]
        return starts


def of_batch(kind: Literal["packed", "paged"], call: Call) -> tuple[SequenceCase, Sequences]:
    """A batch of a kernel's inputs as sequences of equal lengths.

    Raises:
        Unsupported: where it has a mask.
    """
    if call.mask is not None:
        raise Unsupported("takes no mask")
    (B, N, T, H), (K, S, Hv) = call.query.shape, call.value.shape[1:]
    sizes = {"num_heads": N, "num_kv_heads": K, "head_dim": H, "v_head_dim": Hv}
    case = SequenceCase("a batch", 4, "", kind, ((T, S),) * B, **sizes)
    query, key, value = map(_packed, call.arguments[:3])
    query_starts, key_starts = (np.arange(B + 1, dtype=np.int32) * length for length in (T, S))
    return case, Sequences(query, key, value, query_starts, key_starts, call.keywords)


def fit_sequences(case: SequenceCase, limits: Limits) -> SequenceCase:
    """The case in sizes that the function takes; raises Unsupported where it always does what the case does not."""
    for name, setting in limits.always.items():
        if case.settings.get(name, setting) != setting or (setting is True and name not in case.settings):
            raise Unsupported(f"always has {name} = {setting!r}")
    H = limits.head_size(case.head_dim)
    return replace(
        case,
        head_dim=H,
        v_head_dim=case.v_head_dim if limits.value_size else H,
        num_kv_heads=case.num_kv_heads if limits.grouped else case.num_heads,
    )


def _packed(x: Array) -> Array:
    """(B, N, T, H) -> (B * T, N, H)."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(-1, x.shape[1], x.shape[3])


def rows(x: Array, B: int, T: int) -> Array:
    """(B * T, N, H) -> (B, N, T, H), where it has so many rows."""
    return x.reshape(B, T, *x.shape[1:]).swapaxes(1, 2) if x.ndim == 3 and x.shape[0] == B * T else x

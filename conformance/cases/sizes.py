"""Features with sizes of their own: head sizes, groups and batches of real models, one query, and lengths around the
blocks of real kernels.

Kernels work in blocks of 16 to 1024 keys, split long rows of keys, and have another path for one query. A length of
260 has a part of a block left over for every block size up to 256, and 1027 for every one up to 1024; 64, 128, 192 and
1024 fill their blocks exactly. Past 2048 positions are no longer exact in float16, past 32767 they overflow int16.
Each case names the fault that it alone shows; none has more heads or a larger H than that takes.
"""

from __future__ import annotations

from typing import Any

from conformance.cases.features import Feature, Sizes
from gqa_spec import DynamicScaling, RopeConfig

CAUSAL = {"causal": True}


def _of(
    name: str, clause: int, guards: str, sizes: tuple[int, ...], settings: dict[str, Any] | None = None, **more: Any
) -> Feature:
    return Feature(name, clause, guards, settings or {}, sizes=Sizes(*sizes), **more)


# sizes: B, N, K, T, S, H, Hv
HEAD_SIZES = (
    _of("H 8", 2, "heads narrower than a vector register", (2, 3, 3, 5, 11, 8, 8), CAUSAL, gradients=True),
    _of("H 64, Hv 80", 2, "Hv > H cut at H; groups of 3", (1, 12, 4, 5, 11, 64, 80), CAUSAL, gradients=True),
    _of("H 72, Hv 64", 2, "H padded to 128; groups of 4", (2, 16, 4, 7, 11, 72, 64), mask="bool per row"),
    _of("H 80, Hv 96", 2, "H no multiple of 32; groups of 5", (1, 10, 2, 5, 11, 80, 96), {"sinks": True}),
    _of("H 96, Hv 128", 2, "H no power of two; groups of 7", (2, 14, 2, 5, 11, 96, 128), CAUSAL),
    _of("H 128, Hv 72", 2, "groups of 8 over one KV head", (2, 8, 1, 5, 11, 128, 72), {"causal": True, "window": 4}),
    _of(
        "H 256, Hv 20", 2, "H past what fits a block; groups of 16", (1, 64, 4, 5, 11, 256, 20), CAUSAL, gradients=True
    ),
    _of("H 33, Hv 257", 2, "an odd H; Hv past 256", (1, 21, 3, 5, 11, 33, 257), {"softcap": 2.0}),
    _of("H 1, Hv 1", 2, "axes of size 1 that are squeezed", (2, 6, 2, 5, 11, 1, 1), CAUSAL),
)
BATCHES = (
    _of("B equals K", 1, "batch and KV heads exchanged", (4, 8, 4, 5, 11, 12, 10), CAUSAL, mask="padding"),
    _of("B equals N", 1, "batch and query heads exchanged", (6, 6, 2, 5, 11, 12, 10), mask="bool per row"),
    _of("one of each", 1, "axes of size 1 that are squeezed", (1, 1, 1, 1, 1, 8, 8), CAUSAL),
    _of("one key", 2, "a row of one weight", (2, 6, 2, 5, 1, 12, 10), {"sinks": True}),
    _of(
        "one row of a batch",
        1,
        "a batch of one that is squeezed",
        (1, 6, 2, 5, 11, 12, 10),
        CAUSAL,
        mask="bool per head",
    ),
    _of(
        "two heads, poison in one",
        6,
        "a mask of two heads read as one",
        (2, 2, 2, 5, 11, 12, 10),
        mask="poisoned per head",
    ),
    _of("five rows of a batch", 3, "rows past the fourth", (5, 6, 2, 5, 11, 12, 10), CAUSAL, offset="per row"),
    _of("B N past 1024", 1, "a launch grid that ends", (5, 256, 8, 2, 3, 4, 3)),
)
ONE_QUERY = (
    _of(
        "one query over 600 keys",
        8,
        "parts of a row merged without their sums",
        (2, 6, 2, 1, 600, 8, 8),
        {"sinks": True},
    ),
    _of(
        "one query over 600 keys, padding",
        3,
        "parts that are empty in a short row",
        (5, 6, 2, 1, 600, 8, 8),
        mask="lengths at block edges",
    ),
    _of("one query over 1024 keys", 4, "a last part that is full", (2, 4, 1, 1, 1024, 8, 8), CAUSAL),
    _of(
        "one query over 2051 keys, window",
        4,
        "positions that 16 bit round",
        (2, 6, 2, 1, 2051, 8, 8),
        {"causal": True, "window": 1000},
    ),
    _of(
        "3 queries over 2051 keys",
        4,
        "a path for few queries",
        (2, 6, 2, 3, 2051, 8, 8),
        {"causal": True, "sinks": True},
    ),
    _of("2 queries over 32771 keys", 4, "positions past int16", (1, 2, 1, 2, 32771, 4, 4), CAUSAL),
    _of(
        "2 queries over 32771 keys, window",
        4,
        "a window past int16",
        (1, 2, 1, 2, 32771, 4, 4),
        {"causal": True, "window": 3000},
    ),
    _of(
        "one query over 600 keys, growing",
        2,
        "parts merged by another row's peak",
        (2, 6, 2, 1, 600, 8, 8),
        values="scores that grow",
    ),
)
LONG = (
    _of("64 tokens, causal", 4, "a block that is exactly full", (2, 6, 2, 64, 64, 8, 8), CAUSAL),
    _of("65 tokens, padding", 3, "lengths at a block's edge", (5, 3, 1, 65, 65, 8, 8), mask="lengths at block edges"),
    _of("63 tokens", 2, "a block that lacks one key, which then counts as 0", (2, 6, 2, 63, 63, 8, 8)),
    _of("128 queries over 192 keys, causal", 4, "a diagonal between blocks", (1, 6, 2, 128, 192, 8, 8), CAUSAL),
    _of(
        "129 tokens, whole blocks hidden", 5, "a first block without a visible key: -inf less -inf",
        (2, 3, 1, 129, 129, 8, 8), mask="whole blocks hidden", gradients=True,
    ),
    _of("260 tokens", 2, "keys left over after the last block", (1, 6, 2, 260, 260, 8, 8), gradients=True),
    _of("260 tokens, causal", 4, "blocks that are skipped", (1, 6, 2, 260, 260, 8, 10), CAUSAL, gradients=True),
    _of(
        "260 tokens, window of 10", 4, "a window shorter than a block",
        (1, 3, 1, 260, 260, 8, 8), {"causal": True, "window": 10},
    ),
    _of(
        "260 tokens, window of 64", 4, "a window of one block",
        (1, 3, 1, 260, 260, 8, 8), {"causal": True, "window": 64},
    ),
    _of(
        "260 tokens, window of 100", 4, "a window longer than a block, and no multiple of it",
        (1, 3, 1, 260, 260, 8, 8), {"causal": True, "window": 100}, gradients=True,
    ),
    _of("260 tokens, band of 70", 4, "blocks on one side of a band", (1, 3, 1, 260, 260, 8, 8), {"window": 70}),
    _of("260 tokens, chunks of 100", 4, "keys of a chunk behind the query", (1, 3, 1, 260, 260, 8, 8), {"chunk": 100}),
    _of(
        "260 tokens, chunks of 96", 4, "chunks that cross blocks",
        (1, 3, 1, 260, 260, 8, 8), {"chunk": 96, "causal": True},
    ),
    _of(
        "260 tokens, sinks", 8, "a sink counted once for each block",
        (1, 6, 2, 260, 260, 8, 8), {"causal": True, "sinks": True}, gradients=True,
    ),
    _of(
        "260 tokens, mask of queries", 3, "a mask of one column in blocks",
        (2, 3, 1, 260, 260, 8, 8), {"causal": True, "window": 70}, mask="bool (B, 1, T, 1)",
    ),
    _of(
        "260 tokens, bias of queries", 3, "a bias of one column in blocks, which only a sink shows",
        (2, 3, 1, 260, 260, 8, 8), {"causal": True, "window": 70, "sinks": True}, mask="float (B, 1, T, 1)",
    ),
    _of(
        "260 tokens, bias of keys", 3, "a bias of one row in blocks",
        (1, 3, 1, 260, 260, 8, 8), {"causal": True, "window": 70}, mask="float (B, N, 1, S)",
    ),
    _of(
        "260 tokens, softcap", 2, "a cap on part of the blocks",
        (1, 3, 1, 260, 260, 8, 8), {"softcap": 0.9}, mask="float with -inf",
    ),
    _of(
        "260 tokens, bias", 3, "a mask read at the wrong block",
        (2, 6, 2, 260, 260, 8, 8), CAUSAL, mask="float per head",
    ),
    _of(
        "260 tokens, dropout", 9, "one block's dropout used for all",
        (1, 6, 2, 260, 260, 8, 8), CAUSAL, dropout=True, gradients=True,
    ),
    _of(
        "260 tokens, poison", 6, "NaN in a block that is partly hidden",
        (5, 3, 1, 130, 260, 8, 8), mask="poisoned padding",
    ),
    _of(
        "260 tokens, offset per row", 4, "blocks skipped by another row's offset",
        (5, 3, 1, 130, 260, 8, 8), {"causal": True, "window": 50}, offset="per row",
    ),
    _of(
        "260 tokens, everything", 3, "a rule that only one path has", (2, 6, 2, 260, 260, 8, 8),
        {"causal": True, "window": 90, "softcap": 0.9, "scale": 0.7, "sinks": True}, mask="float with -inf",
    ),
    _of(
        "300 queries over 67 keys, causal", 5, "whole blocks of queries that see no key",
        (1, 6, 2, 300, 67, 8, 8), CAUSAL,
    ),
    _of("70 queries over 515 keys, causal", 4, "a chunk of a prefill", (1, 6, 2, 70, 515, 8, 8), CAUSAL),
    _of(
        "260 tokens, scores that grow", 2, "sums that are not rescaled as the peak grows",
        (1, 6, 2, 260, 260, 8, 8), values="scores that grow",
    ),
    _of(
        "260 tokens, scores that fall", 2, "a peak taken from the last block",
        (1, 6, 2, 260, 260, 8, 8), values="scores that fall",
    ),
    _of("1024 tokens, causal", 4, "a last block that is full", (1, 2, 1, 1024, 1024, 4, 4), CAUSAL),
    _of(
        "1027 tokens, window of 300", 4, "blocks of 512 and 1024",
        (1, 2, 1, 1027, 1027, 4, 4), {"causal": True, "window": 300},
    ),
    _of(
        "1030 queries over 37 keys", 2, "queries left over after the last block",
        (1, 2, 1, 1030, 37, 4, 4), mask="float (T, S)",
    ),
)  # fmt: skip
KERNEL_SIZES = {"head sizes": HEAD_SIZES, "batches": BATCHES, "few queries": ONE_QUERY, "long": LONG}

ROPE = {"rope": RopeConfig()}
DYNAMIC = {"rope": RopeConfig(scaling=DynamicScaling(factor=2.0, original_max_position_embeddings=100))}
LAYER_SIZES = {
    "layer head sizes": (
        _of("H 64", 10, "heads of 64", (2, 6, 2, 11, 11, 64, 64), CAUSAL | ROPE, square=True),
        _of(
            "H 80, partial RoPE", 10, "a rotary part of 32",
            (1, 5, 1, 11, 11, 80, 80), {"rope": RopeConfig(rotary_dim=32)}, square=True,
        ),
        _of(
            "H 128, interleaved", 10, "pairs of wide heads",
            (1, 4, 2, 7, 7, 128, 128), CAUSAL | {"rope": RopeConfig(pairing="interleaved")}, square=True,
        ),
        _of(
            "H 256, QK-norm", 11, "a norm of wide heads",
            (1, 4, 1, 5, 5, 256, 256), {"qk_norm": "rms_plus_one", **ROPE}, square=True,
        ),
        _of("B equals K, a layer", 1, "batch and KV heads exchanged", (4, 8, 4, 5, 11, 12, 10), CAUSAL, mask="padding"),
        _of("one token", 1, "axes of size 1 that are squeezed", (1, 6, 2, 1, 1, 8, 8), CAUSAL | ROPE, square=True),
    ),
    "long layers": (
        _of(
            "65 tokens, causal", 10, "tables of 64 positions",
            (2, 6, 2, 65, 65, 8, 8), CAUSAL | ROPE, square=True, gradients=True,
        ),
        _of(
            "260 tokens, RoPE and a window", 10, "a window's buffer",
            (1, 6, 2, 260, 260, 8, 8), {"causal": True, "window": 100, **ROPE}, square=True,
        ),
        _of(
            "260 tokens, lengths at block edges", 3, "padding read as causal",
            (5, 3, 1, 260, 260, 8, 8), ROPE, square=True, mask="lengths at block edges",
        ),
        _of(
            "260 tokens, dynamic NTK", 10, "frequencies of a table's length",
            (1, 3, 1, 260, 260, 8, 8), CAUSAL | DYNAMIC, square=True,
        ),
        _of("1027 tokens, causal", 4, "buffers of 1024", (1, 2, 1, 1027, 1027, 4, 4), CAUSAL | ROPE, square=True),
        _of(
            "2051 tokens, causal", 10, "tables of 2048 positions, or in float16",
            (1, 1, 1, 2051, 2051, 4, 4), CAUSAL | ROPE, square=True,
        ),
        _of("one query over 600 keys, RoPE", 10, "a query rotated at 0", (2, 6, 2, 1, 600, 8, 8), CAUSAL | ROPE),
        _of("2 queries over 32771 keys, RoPE", 10, "positions past int16", (1, 2, 1, 2, 32771, 4, 4), CAUSAL | ROPE),
    ),
}  # fmt: skip

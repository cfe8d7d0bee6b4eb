"""The features of a kernel. `BASIC` is crossed with groupings; the others are run with one grouping."""

from __future__ import annotations

from conformance.cases.features import Feature

BASIC = (
    Feature("plain", 1, "query heads that read the wrong KV head"),
    Feature("square", 1, "a plain layer: default head sizes, self-attention", square=True),
    Feature("square causal", 4, "a plain layer that sees the future", {"causal": True}, square=True),
    Feature("square mask", 3, "a plain layer with an inverted mask", mask="bool (T, S)", square=True),
    Feature("bool mask", 3, "True read as masked", mask="bool (T, S)"),
    Feature("mask per row", 3, "one row's mask used for another", mask="bool per row"),
    Feature("mask per head", 3, "one head's mask used for another", mask="bool per head"),
    Feature("padding", 3, "padded keys that leak", mask="padding"),
    Feature("float mask", 3, "a bias read as a boolean", mask="float per head"),
    Feature("float mask with -inf", 3, "-inf that leaks or turns to NaN", mask="float with -inf"),
    Feature("finfo.min bias", 3, "a finite bias read as a mask, min + min overflowing", mask="finfo.min"),
    Feature("causal", 4, "causal masks aligned top-left", {"causal": True}),
    Feature("causal, offset 0", 4, "an offset that is ignored", {"causal": True}, offset="zero"),
    Feature("causal, offset per row", 4, "one row's offset used for another", {"causal": True}, offset="per row"),
    Feature("causal, more queries than keys", 5, "first queries that see no key", {"causal": True}, long_queries=True),
    Feature("causal and mask", 3, "one of two masks dropped", {"causal": True}, mask="bool per row"),
    Feature("window", 4, "a window of W + 1 or W - 1 keys", {"causal": True, "window": 3}),
    Feature("window band", 4, "a band that leans to one side", {"window": 3}),
    Feature("window of one", 4, "an off-by-one that only the smallest window shows", {"causal": True, "window": 1}),
    Feature("chunk", 4, "chunks counted from the wrong end", {"chunk": 4}),
    Feature("chunk, offset per row", 4, "negative places rounded to 0", {"chunk": 4}, offset="per row"),
    Feature("scale", 2, "a scale that is ignored", {"scale": 0.731}),
    Feature("softcap", 2, "cap before scale, or after the softmax", {"softcap": 0.9, "scale": 0.7}),
    Feature("softcap and mask", 2, "cap after the mask", {"softcap": 0.9, "scale": 0.7}, mask="float with -inf"),
    Feature("sinks", 8, "sinks per KV head, scaled, or in the numerator", {"sinks": True}),
    Feature("sinks and window", 8, "sinks that are masked", {"sinks": True, "causal": True, "window": 3}),
    Feature("empty rows", 5, "mean(V) or NaN where no key is visible", mask="empty rows"),
    Feature("empty rows and sinks", 5, "empty rows that a sink fills", {"sinks": True}, mask="empty rows"),
    Feature("poison", 6, "NaN in invisible keys that leaks", mask="poisoned padding"),
    Feature("poison and softcap", 6, "NaN that comes back through tanh", {"softcap": 0.9}, mask="poisoned padding"),
    Feature("dropout", 9, "weights returned after dropout", dropout=True),
    Feature(
        "everything", 3, "an order of operations that only shows when all are on",
        {"causal": True, "window": 5, "softcap": 0.9, "scale": 0.7, "sinks": True},
        mask="float with -inf", offset="per row",
    ),
)  # fmt: skip

# Numbers that a kernel computes wrongly although it has every rule right.
VALUES = (
    Feature("large scores", 2, "exp without the largest score taken off", values="large scores"),
    Feature(
        "large scores and softcap",
        2,
        "tanh as a ratio of exponentials, which overflows",
        {"softcap": 5.0},
        values="large scores",
    ),
    Feature(
        "products past 65504",
        2,
        "products that are kept or clipped in 16 bit",
        {"scale": 1e-6},
        values="products past 65504",
    ),
    Feature(
        "scores below -1e9",
        3,
        "hidden keys at -1e4 or -1e9, which then win",
        mask="bool per row",
        values="scores below -1e9",
    ),
    Feature(
        "scores below -1e9, causal",
        4,
        "future keys at -1e4 or -1e9, which then win",
        {"causal": True},
        values="scores below -1e9",
    ),
    Feature("equal scores", 2, "ties broken, a peak counted once", mask="padding", values="equal scores"),
    Feature("one key for each query", 2, "weights rounded or cut off near 1", values="one key for each query"),
    Feature("weights that underflow", 2, "log of a weight that is 0", values="weights that underflow"),
    Feature("tiny inputs", 2, "a lower bound under products or norms", values="tiny inputs"),
    Feature("large values", 1, "values clipped, or summed in 16 bit", values="large values"),
    Feature(
        "sinks far above the scores", 8, "a peak that leaves out the sink", {"sinks": True}, values="scores below -1e9"
    ),
    Feature(
        "sinks far below the scores",
        8,
        "the sink alone as the peak",
        {"sinks": True},
        values="weights that underflow",
    ),
    Feature("poison per KV head", 6, "NaN that another KV head may see", mask="poisoned per head"),
    Feature("NaN in a visible value", 3, "NaN replaced by a number", values="NaN in a visible value"),
    Feature("poison behind -inf", 6, "-inf + NaN in a floating mask", mask="poisoned -inf"),
    Feature(
        "poison behind a window", 6, "NaN past the window's edge", {"causal": True, "window": 4}, mask="poisoned -inf"
    ),
)

# Masks of each shape that broadcasts, and offsets on every side.
SHAPES = (
    Feature("mask of every axis", 3, "a mask whose heads or rows are folded", mask="bool (B, N, T, S)"),
    Feature("mask of queries", 3, "a mask of one column read as one row", mask="bool (B, 1, T, 1)"),
    Feature("float mask (T, S)", 3, "a bias without batch and heads", mask="float (T, S)"),
    Feature(
        "float mask of keys per head",
        3,
        "a bias of one query, used for the first query alone",
        mask="float (B, N, 1, S)",
    ),
    Feature("float16 mask", 3, "a mask in another dtype than the query's", mask="float16 per row"),
    Feature("causal, offset past the end", 4, "offsets beyond S - T", {"causal": True}, offset="past the end"),
    Feature(
        "window, offset past the end",
        4,
        "a window behind the last key",
        {"causal": True, "window": 5},
        offset="past the end",
    ),
    Feature(
        "causal, offset before the start",
        4,
        "a negative offset taken for a count from the end",
        {"causal": True},
        offset="before the start",
    ),
    Feature("chunk of one", 4, "a chunk that holds the query's own key alone", {"chunk": 1, "causal": True}),
    Feature("window longer than S", 4, "a window cut at the number of keys", {"causal": True, "window": 40}),
)

# Two rules at once: a fast path that is chosen for one of them and forgets the other. A target that lacks one of two
# cannot run the pair, so no case has more than it needs.
PAIRS = (
    Feature("causal and padding", 3, "padding dropped with causal", {"causal": True}, mask="padding"),
    Feature("causal and float mask", 3, "a bias dropped with causal", {"causal": True}, mask="float per head"),
    Feature("causal and -inf mask", 3, "-inf dropped with causal", {"causal": True}, mask="float with -inf"),
    Feature(
        "causal and finfo.min bias", 3, "hidden keys at a finite number, which tie or win",
        {"causal": True}, mask="finfo.min",
    ),
    Feature("causal and scale", 2, "a scale dropped with causal", {"causal": True, "scale": 0.731}),
    Feature("causal and softcap", 2, "a cap dropped with causal", {"causal": True, "softcap": 0.9}),
    Feature("causal and sinks", 8, "sinks dropped with causal", {"causal": True, "sinks": True}),
    Feature("causal and dropout", 9, "dropout drawn for all keys, or causal dropped", {"causal": True}, dropout=True),
    Feature("causal and chunk", 4, "one of two rules dropped", {"causal": True, "chunk": 4}),
    Feature("causal, poison", 6, "NaN in padding, with causal", {"causal": True}, mask="poisoned padding"),
    Feature("window and padding", 3, "a mask dropped with a window", {"causal": True, "window": 4}, mask="padding"),
    Feature(
        "window and bias", 3, "a bias dropped with a window",
        {"causal": True, "window": 4}, mask="float with -inf",
    ),
    Feature("window and scale", 2, "a scale dropped with a window", {"causal": True, "window": 4, "scale": 0.731}),
    Feature("window and softcap", 2, "a cap dropped with a window", {"causal": True, "window": 4, "softcap": 0.9}),
    Feature("window and dropout", 9, "dropout dropped with a window", {"causal": True, "window": 4}, dropout=True),
    Feature(
        "window, offset 0", 4, "a window aligned elsewhere than causal",
        {"causal": True, "window": 3}, offset="zero",
    ),
    Feature(
        "window, offset per row", 4, "one row's window used for another",
        {"causal": True, "window": 3}, offset="per row",
    ),
    Feature("band and padding", 3, "a mask dropped with a band", {"window": 4}, mask="padding"),
    Feature("chunk and padding", 3, "a mask dropped with chunks", {"chunk": 4}, mask="padding"),
    Feature("mask and scale", 2, "a scale dropped with a mask", {"scale": 0.731}, mask="bool per row"),
    Feature("mask and dropout", 9, "dropout dropped with a mask", mask="bool per row", dropout=True),
    Feature("bias and dropout", 9, "dropout before the bias", mask="float per head", dropout=True),
    Feature("mask and sinks", 8, "sinks dropped with a mask", {"sinks": True}, mask="bool per row"),
    Feature("softcap and sinks", 8, "sinks capped", {"sinks": True, "softcap": 0.9}),
    Feature("scale and sinks", 8, "sinks scaled", {"sinks": True, "scale": 0.731}),
    Feature("sinks and dropout", 9, "a sink that is dropped", {"sinks": True}, dropout=True),
    Feature("softcap and dropout", 9, "dropout dropped with a cap", {"softcap": 0.9}, dropout=True),
)  # fmt: skip

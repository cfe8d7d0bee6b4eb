"""Which axis of each canonical weight is cut over a mesh's tensor axis, for layers and models. Both backends use it.

A projection is cut by heads, a feed-forward by its F rows, the embedding and the head by the vocabulary. Where there
are fewer KV heads than parts, the key and value projections stay whole: each part takes the head that its queries read.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from gqa_spec import checks
from gqa_spec.config import AttentionConfig, symbolic_shapes
from gqa_spec.model_config import ModelConfig, model_symbolic_shapes


def cut_axes(config: AttentionConfig | ModelConfig, tensor: int) -> dict[str, int | None]:
    """The axis of each canonical weight that is cut into `tensor` equal parts; None for a weight that stays whole.

    Args:
        config: a layer's or a model's.
        tensor: the size of the mesh's tensor axis.

    Returns:
        canonical name -> axis or None, in canonical order.

    Raises:
        ValueError: for a size that does not divide the heads or the feed-forward, with the sizes that would do; for a
            norm over all heads (`rms_full`), of which no part can compute its share alone; for experts.
    """
    if isinstance(config, AttentionConfig):
        checks.tensor_size(config, tensor)
        return {name: _cut(symbols, config, tensor) for name, symbols in symbolic_shapes(config).items()}
    for layer in config.attention:
        checks.tensor_size(layer, tensor, config.feed_forward_size)
    if config.experts is not None:
        checks.uncut_experts(tensor, config.experts.num_experts)
    axes = {}
    for name, symbols in model_symbolic_shapes(config).items():
        layer = config.attention[int(name.split(".")[1])] if name.startswith("blocks.") else config.attention[0]
        axes[name] = _cut(symbols, layer, tensor, vocab_size=config.vocab_size or 0)
    return axes


@cache
def local_config(config: AttentionConfig, tensor: int) -> AttentionConfig:
    """The settings of the part of a layer that one of `tensor` devices computes: N / tensor query heads and the
    max(K / tensor, 1) KV heads that they read, heads of the same size, inputs and outputs of the same width.

    Raises:
        ValueError: as `cut_axes`.
    """
    checks.tensor_size(config, tensor)
    heads, kv_heads = config.num_heads // tensor, max(config.num_kv_heads // tensor, 1)
    return replace(config, num_heads=heads, num_kv_heads=kv_heads)


def kv_head_copies(config: AttentionConfig, tensor: int) -> int:
    """On how many devices each KV head is computed and cached: 1 where K >= tensor."""
    checks.tensor_size(config, tensor)
    return max(tensor // config.num_kv_heads, 1)


def _cut(symbols: str, config: AttentionConfig, tensor: int, vocab_size: int = 0) -> int | None:
    """The axis that counts heads, F or V. A vocabulary that `tensor` does not divide stays whole."""
    cuttable = {"N": True, "F": True, "K": config.num_kv_heads % tensor == 0, "V": vocab_size % tensor == 0}
    for axis, factors in enumerate(symbols.strip(",").split(", ")):
        if any(cuttable.get(factor, False) for factor in factors.split("*")):
            return axis
    return None

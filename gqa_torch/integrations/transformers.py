"""gqa_torch as an `attn_implementation` of transformers.

```python
from gqa_torch.integrations import transformers as gqa

gqa.register()
model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="gqa")
```

Two functions are registered, since transformers leaves causality to the mask function: without one it makes no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor as Array
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import output_capturing

from gqa_torch import masks
from gqa_torch.attention import attention_stages, grouped_query_attention
from gqa_torch.precision import compute_dtype

# Keywords that reach every attention function and change nothing here: bookkeeping of the model around it, and
# settings that transformers has put into the mask already.
WITHOUT_EFFECT = frozenset(
    {
        *("num_items_in_batch", "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep"),
        *("position_ids", "cache_position", "position_embeddings", "use_cache", "past_key_values", "deterministic"),
        *("sliding_window", "attention_chunk_size", "token_type_ids", "mm_token_type_ids"),
    }
)
_recorded: ContextVar[list[dict[str, Array]] | None] = ContextVar("recorded stages", default=None)


def register(name: str = "gqa") -> None:
    """Make `attn_implementation=name` use gqa_torch in every model that goes through transformers' AttentionInterface.

    Args:
        name: what models and configs call it.
    """
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)  # boolean masks, True = may attend, or None where causal says all


@contextmanager
def recorded_stages() -> Iterator[list[dict[str, Array]]]:
    """Record every stage of every attention that runs inside the `with` block, slowly and with all scores in memory.

    Returns:
        A list that grows by one dictionary for each call, in the order of calls: query (B, N, T, H), key (B, K, S, H),
        value (B, K, S, Hv) as the model hands them over, after norm and RoPE, then the stages of `attention_stages`.
    """
    layers: list[dict[str, Array]] = []
    token = _recorded.set(layers)
    try:
        yield layers
    finally:
        _recorded.reset(token)


def attention(
    module: nn.Module,
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S Hv"],
    attention_mask: Array | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Float[Array, "N"] | None = None,
    position_bias: Array | None = None,
    is_causal: bool | None = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[Float[Array, "B T N Hv"], Float[Array, "B N T S"] | None]:
    """One attention of a transformers model, as its AttentionInterface calls it.

    Args:
        module: the model's own attention module; `is_causal` and `training` are read from it.
        query, key, value: after norm and RoPE; K divides N.
        attention_mask: None, boolean (True = may attend) or floating (added to the scores).
        scaling: H ** -0.5 where None.
        dropout: the probability; acts while the module trains.
        softcap: SPEC 2.
        s_aux: the sinks of gpt-oss, SPEC 8.
        position_bias: added to the scores, (1 or B, N, T, S).
        is_causal: instead of the module's; used where there is no mask and more than one query.
        output_attentions: whether weights are returned; they are those before dropout (SPEC 9). Models that do not
            pass it on (gpt2, nemotron) collect weights all the same; where transformers collects, they are returned.

    Returns:
        context, heads behind positions, and the weights or None.

    Raises:
        ValueError: for an argument that cannot be honoured; none is dropped.
    """
    refuse(others)
    T, S = query.shape[2], key.shape[2]
    causal = (
        attention_mask is None and T > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    )
    mask = attention_mask
    if position_bias is not None:
        bias = position_bias[..., :S].expand(-1, query.shape[1], T, S)
        mask = bias if mask is None else masks.combine(mask, bias)
    settings: dict[str, Any] = {
        "causal": causal,
        "offset": 0 if causal else None,
        "scale": scaling,
        "softcap": softcap,
        "sinks": s_aux,
        "dropout_multiplier": _multiplier(module, query, S, dropout),
    }
    layers = _recorded.get()
    if layers is not None:
        stages = attention_stages(query, key, value, mask, **settings)
        layers.append({"query": query, "key": key, "value": value, **stages})
    context, weights = grouped_query_attention(
        query, key, value, mask, **settings, need_weights=_weights_wanted(output_attentions)
    )
    return context.transpose(1, 2).contiguous(), weights


def refuse(others: dict[str, Any]) -> None:
    """Raises ValueError that names every given argument whose meaning is not known here."""
    unknown = [name for name, x in others.items() if x is not None and name not in WITHOUT_EFFECT]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: gqa_torch's attention in transformers cannot honour this; "
            "load the model with attn_implementation='eager'"
        )


def _weights_wanted(output_attentions: bool | None) -> bool:
    collected = output_capturing._active_collector.get() or {}
    return bool(output_attentions) or any("attentions" in name for name in collected)


def _multiplier(module: nn.Module, query: Array, S: int, dropout: float) -> Array | None:
    if not module.training or dropout == 0:
        return None
    ones = torch.ones(*query.shape[:3], S, dtype=compute_dtype(query.dtype), device=query.device)
    return nn.functional.dropout(ones, dropout)

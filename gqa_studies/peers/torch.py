"""gqa_torch against what PyTorch itself offers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor as Array
from torch.nn import functional as F

from gqa_studies.peers import Peer
from gqa_studies.timed_call import TimedCall
from gqa_torch import grouped_query_attention, masks


class Calls:
    def __init__(self, case: TimedCall) -> None:
        self.groups = case.N // case.K
        dtype = getattr(torch, case.dtype)
        self.query, self.key, self.value = (torch.from_numpy(x).to(dtype) for x in case.arrays())
        self.mask = _mask(case)
        self.is_causal = case.T > 1 and self.mask is None
        self.settings: dict[str, Any] = {"causal": True, "window": case.window}
        if case.lengths is not None:
            by_offset = {"causal": True, "offset": torch.tensor(case.lengths) - 1}
            self.settings = by_offset if case.lengths_as == "offset" else {"mask": self.mask}

    def ours(self) -> Array:
        return grouped_query_attention(self.query, self.key, self.value, **self.settings, need_weights=False)[0]

    def sdpa(self) -> Array:
        return F.scaled_dot_product_attention(
            self.query, self.key, self.value, self.mask, is_causal=self.is_causal, enable_gqa=True
        )

    def repeated(self) -> Array:
        key, value = (x.repeat_interleave(self.groups, dim=1) for x in (self.key, self.value))
        return F.scaled_dot_product_attention(self.query, key, value, self.mask, is_causal=self.is_causal)


def _mask(case: TimedCall) -> Array | None:
    """What SDPA takes as a mask alone, made before the clock starts."""
    if case.lengths is not None:
        return masks.padding(torch.tensor(case.lengths), case.S)
    if case.window is not None:
        return masks.causal(case.T, case.S) & masks.window(case.T, case.S, case.window)
    return None


def to_numpy(x: Array) -> np.ndarray:
    return x.float().numpy()


PEERS = {"SDPA(enable_gqa)": Peer(Calls.sdpa), "repeat_interleave + SDPA": Peer(Calls.repeated)}

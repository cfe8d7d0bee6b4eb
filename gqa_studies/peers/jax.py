"""gqa_jax against jax.nn.dot_product_attention, both jitted, each in its own layout."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gqa_jax import grouped_query_attention
from gqa_studies.peers import Peer
from gqa_studies.timed_call import TimedCall


class Calls:
    def __init__(self, case: TimedCall) -> None:
        self.heads_first = [jnp.asarray(x, case.dtype) for x in case.arrays()]
        self.tokens_first = [jnp.swapaxes(x, 1, 2) for x in self.heads_first]
        self._ours = jax.jit(partial(grouped_query_attention, causal=True, need_weights=False))
        self._theirs = jax.jit(partial(jax.nn.dot_product_attention, is_causal=case.T > 1))

    def ours(self) -> Array:
        return self._ours(*self.heads_first)[0].block_until_ready()

    def dot_product_attention(self) -> Array:
        return self._theirs(*self.tokens_first).block_until_ready()


def to_numpy(x: Array) -> np.ndarray:
    return np.asarray(x, np.float32)


PEERS = {"jax.nn.dot_product_attention": Peer(Calls.dot_product_attention, heads_axis=2)}

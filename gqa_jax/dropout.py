"""Dropout as a module whose rate may be set."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jax import Array


class Dropout(nnx.Dropout):
    """`nnx.Dropout`, with a stream of random numbers of its own where the rate is positive from the start.

    Made with rate 0 it has none, so that the state of a module without dropout is its weights alone.
    """

    def __init__(self, rate: float, rngs: nnx.Rngs) -> None:
        super().__init__(rate, rngs=rngs if rate > 0 else None)

    def __call__(self, inputs: Array, *, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """Drop, except where deterministic (by default the attribute), and raise where there is nothing to draw from.

        Raises:
            ValueError: For a rate that was set on a module made with 0.
        """
        off = self.deterministic if deterministic is None else deterministic
        if self.rate > 0 and not off and rngs is None and self.rngs is None:
            raise ValueError(
                f"dropout.rate: expected 0 where dropout was 0 when the module was made, got {self.rate}: "
                "set dropout.rngs = nnx.Rngs(dropout=0).dropout too, or make the module with its dropout"
            )
        return super().__call__(inputs, deterministic=deterministic, rngs=rngs)

"""The sizes of one timed call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class TimedCall:
    """T queries, the last of which sees the last of S keys.

    lengths: how many keys of each batch row are real, for a batch whose rows differ. `lengths_as`: our function
    gets them as a padding "mask", or as an "offset" for each row, as a cache gives it.
    """

    T: int
    S: int
    K: int = 8
    dtype: str = "float32"
    window: int | None = None
    lengths: tuple[int, ...] | None = None
    lengths_as: str = "mask"
    N: int = 32
    H: int = 128

    @property
    def B(self) -> int:
        return len(self.lengths or (self.S,))

    @property
    def read_bytes(self) -> int:
        """Of K and V together, each element once."""
        return 2 * self.B * self.K * self.S * self.H * (2 if self.dtype == "bfloat16" else 4)

    @property
    def flops(self) -> int:
        return 4 * self.B * self.N * self.T * self.S * self.H

    def arrays(self) -> Iterator[Array]:
        """query, key and value in float32, the same at every call."""
        rng = np.random.default_rng(0)
        for heads, tokens in ((self.N, self.T), (self.K, self.S), (self.K, self.S)):
            yield rng.standard_normal((self.B, heads, tokens, self.H), dtype=np.float32)


def tiny(case: TimedCall) -> TimedCall:
    """The same kind of call at sizes that take no time, to try the benchmark itself."""

    def shrunk(size: int) -> int:
        return max(size // 64, 1)

    return replace(
        case,
        T=shrunk(case.T),
        S=shrunk(case.S),
        H=16,
        window=None if case.window is None else shrunk(case.window),
        lengths=None if case.lengths is None else tuple(shrunk(length) for length in case.lengths),
    )

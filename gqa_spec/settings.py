"""The keyword arguments of one call as one object: spelled out in the public signatures, passed on whole from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelSettings:
    """What `grouped_query_attention` takes by keyword (SPEC 2 to 9), apart from the mask and need_weights.

    offset, sinks and dropout_multiplier may be arrays of the backend; scale and softcap may be traced numbers.
    """

    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    offset: Any = None
    scale: Any = None
    softcap: Any = None
    sinks: Any = None
    dropout_multiplier: Any = None

    def scale_for(self, head_dim: int) -> Any:
        """The factor on query . key: H ** -0.5 unless given."""
        return head_dim**-0.5 if self.scale is None else self.scale

    @property
    def only_causal(self) -> bool:
        """Whether causal alone hides keys by position."""
        return self.causal and self.window is None and self.chunk is None

    @property
    def hides_by_position(self) -> bool:
        """Whether positions alone may hide a key from a query."""
        return self.causal or self.window is not None or self.chunk is not None

    @property
    def window_and_chunk(self) -> bool:
        """Whether both cut the keys: no single range of keys then says what one query sees."""
        return self.window is not None and self.chunk is not None


@dataclass(frozen=True, eq=False, kw_only=True)
class RotationSettings:
    """What a layer's call takes by keyword for RoPE (SPEC 10): positions only rotate, offset also hides keys."""

    positions: Any = None
    key_positions: Any = None
    offset: Any = None
    rope_length: int | None = None

    @classmethod
    def of_call(
        cls, key: Any, positions: Any, key_positions: Any, offset: Any, rope_length: int | None
    ) -> RotationSettings:
        """Of one call. Without a key, the keys are the queries' tokens and have their positions."""
        if key is None and key_positions is None:
            key_positions = positions
        return cls(positions=positions, key_positions=key_positions, offset=offset, rope_length=rope_length)

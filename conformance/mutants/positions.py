"""Mutants of the kernel's positions: alignment, offsets, causal, windows, chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.reference.kernel import ReferenceKernel

Array = np.ndarray


class TopLeftCausal(ReferenceKernel):
    """Query i always at position i, however many keys there are."""

    def position(self, i: int, offset: int) -> int:
        return i


class CausalWithoutItself(ReferenceKernel):
    """j < i instead of j <= i: no query sees its own position."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return not (causal and j == place) and super().allowed(place, j, causal, window, chunk)


class CausalOneAhead(ReferenceKernel):
    """Every query sees one key of the future."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place + 1 if causal and window is None else place, j, causal, window, chunk)


class WindowOneMore(ReferenceKernel):
    """The window counts the keys before the query, not the query's own: W + 1 keys."""

    def window(self, window: int) -> int:
        return window + 1


class WindowOneLess(ReferenceKernel):
    """W - 1 keys, the query's own counted."""

    def window(self, window: int) -> int:
        return window - 1


class WindowLeaksFuture(ReferenceKernel):
    """With a window the causal mask is dropped."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place, j, causal and window is None, window, chunk)


class WindowIgnored(ReferenceKernel):
    """No window at all."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place, j, causal, None, chunk)


class BandLooksBackOnly(ReferenceKernel):
    """A window without causal made one-sided."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        return super().allowed(place, j, causal or window is not None, window, chunk)


class ChunkRoundsToZero(ReferenceKernel):
    """Division that truncates: negative positions fall into chunk 0."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        same_chunk = chunk is None or int(place / chunk) == j // chunk
        return same_chunk and super().allowed(place, j, causal, window, None)


class ChunkAsWindow(ReferenceKernel):
    """Chunks slide with the query."""

    def allowed(self, place: int, j: int, causal: bool, window: int | None, chunk: int | None) -> bool:
        near = chunk is None or place - chunk < j <= place
        return near and super().allowed(place, j, causal, window, None)


class OffsetIgnored(ReferenceKernel):
    """Always aligned at the last key, whatever offset is given."""

    def __call__(self, *args: Any, offset: Any = None, **keywords: Any) -> tuple[Array, Array]:
        return super().__call__(*args, **keywords)


class FirstRowsOffsetForAll(ReferenceKernel):
    """One offset for the whole batch, though each row has its own."""

    def __call__(self, *args: Any, offset: Any = None, **keywords: Any) -> tuple[Array, Array]:
        return super().__call__(*args, offset=None if offset is None else np.ravel(offset)[0], **keywords)


class NegativeOffsetIsZero(ReferenceKernel):
    """Positions clamped to 0, so that a query before the first key sees it."""

    def position(self, i: int, offset: int) -> int:
        return max(super().position(i, offset), 0)

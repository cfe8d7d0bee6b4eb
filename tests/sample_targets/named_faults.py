"""Faults that have a name, or that must not be given a wrong one."""

import numpy as np

import gqa_numpy


def kernel(query, key, value, mask=None, *, causal=False, window=None, scale=None, softcap=None):
    return gqa_numpy.grouped_query_attention(
        query, key, value, mask, causal=causal, window=window, scale=scale, softcap=softcap
    )


def mask_ignored(query, key, value, mask=None, *, causal=False):
    return kernel(query, key, value, None if mask is not None and mask.dtype == bool else mask, causal=causal)


def output_too_large(query, key, value, mask=None, *, causal=False):
    return kernel(query, key, value, mask, causal=causal)[0] * query.dtype.type(1.25)


def window_plus_one(query, key, value, mask=None, *, causal=False, window=None):
    return kernel(query, key, value, mask, causal=causal, window=None if window is None else window + 1)


def window_forgotten_while_decoding(query, key, value, mask=None, *, causal=False, window=None):
    return kernel(query, key, value, mask, causal=causal, window=None if query.shape[2] == 1 else window)


def tiled_while_decoding(query, key, value, mask=None, *, causal=False):
    """The other order of heads for one query, which looks like it where all agree."""
    if query.shape[2] == 1:
        order = np.arange(query.shape[1]) % key.shape[1]
        key, value = key[:, order], value[:, order]
    return kernel(query, key, value, mask, causal=causal)


def wrong_with_scale(query, key, value, mask=None, *, causal=False, scale=None):
    """Reversed where a scale is given: no convention explains it."""
    context = kernel(query, key, value, mask, causal=causal, scale=scale)[0]
    return context if scale is None else context[..., ::-1]


class EpsilonOutside(gqa_numpy.GroupedQueryAttention):
    """x / (rms + eps) for x / sqrt(mean of squares + eps): off by 1e-7 where there is a norm, exact elsewhere."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        if self.config.qk_norm is not None:
            self.nudge = 1 + 1e-7

    def __call__(self, *arguments, **keywords):
        output, weights = super().__call__(*arguments, **keywords)
        return np.asarray(output * output.dtype.type(getattr(self, "nudge", 1))), weights


class InterleavedAlways(gqa_numpy.GroupedQueryAttention):
    def __init__(self, *arguments, rope=None, **settings):
        from dataclasses import replace

        super().__init__(*arguments, rope=rope and replace(rope, pairing="interleaved"), **settings)

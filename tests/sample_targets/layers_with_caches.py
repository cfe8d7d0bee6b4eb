"""Classes with a cache: one that is right, and one fault in each of the others."""

import numpy as np

import gqa_numpy


class Right(gqa_numpy.GroupedQueryAttention):
    pass


class FromTheFirstKey(Right):
    def extend(self, x, cache, *, lengths=None):
        if not cache.rolling and int(cache.length.max()):
            earlier = np.concatenate([self.seen, x], axis=1)
            output = self(earlier, offset=0, rope_length=cache.rope_length)[0][:, : x.shape[1]]
        else:
            earlier, output = x, None
        self.seen = earlier
        right, cache = super().extend(x, cache, lengths=lengths)
        return right if output is None else output, cache


class Endless(Right):
    def init_cache(self, batch_size, max_length, *, rolling=False):
        return super().init_cache(batch_size, max_length + 1, rolling=rolling)


class Without(Right):
    extend = None

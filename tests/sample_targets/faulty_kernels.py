"""One function that is right, and one fault in each of the others."""

import os
import time

import numpy as np

import gqa_numpy


def correct(query, key, value, mask=None, *, causal=False):
    return gqa_numpy.grouped_query_attention(query, key, value, mask, causal=causal)


def raises(query, key, value, mask=None):
    if query.shape[2] == key.shape[2]:
        return correct(query, key, value, mask)
    raise ZeroDivisionError("no reason")


def always_raises(query, key, value, mask=None):
    raise ZeroDivisionError("no reason")


def hangs(query, key, value, mask=None, *, causal=False):
    if causal:
        time.sleep(60)
    return correct(query, key, value, mask)


def dies(query, key, value, mask=None, *, causal=False):
    if causal:
        os._exit(7)
    return correct(query, key, value, mask)


def returns_a_list(query, key, value):
    return [1.0]


def returns_another_shape(query, key, value):
    return correct(query, key, value)[0][..., :1]


def returns_another_dtype(query, key, value):
    return correct(query, key, value)[0].astype(np.float16)


def returns_nan(query, key, value):
    output = correct(query, key, value)[0]
    output[..., 0] = np.nan
    return output


def returns_integers(query, key, value):
    return np.zeros(query.shape[:3] + value.shape[3:], int)


def changes_its_inputs(query, key, value):
    output = correct(query, key, value)[0]
    key *= 2
    return output


def is_random(query, key, value):
    output = correct(query, key, value)[0]
    return output + np.random.default_rng().normal(size=output.shape).astype(output.dtype) * 1e-3


def tiled(query, key, value):
    groups = query.shape[1] // key.shape[1]
    return correct(query, *(np.tile(x, (1, groups, 1, 1)) for x in (key, value)))


def tiled_and_unscaled(query, key, value):
    return tiled(query * query.dtype.type(query.shape[-1] ** 0.5), key, value)


def ends_its_process(query, key, value, mask=None):
    os._exit(7)

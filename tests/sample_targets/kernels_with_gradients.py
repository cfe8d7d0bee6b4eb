"""Functions whose outputs are right (`tiled` apart) and whose gradients are right, wrong, refused or missing."""

import jax
import torch

import gqa_jax
import gqa_torch


def correct(query, key, value, mask=None, *, causal=False):
    return gqa_torch.grouped_query_attention(query, key, value, mask, causal=causal)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, d_x):
        return d_x / 2


def halves_the_keys(query, key, value, mask=None, *, causal=False):
    return correct(query, Halved.apply(key), value, mask, causal=causal)


def refuses(query, key, value, mask=None, *, causal=False):
    if query.requires_grad:
        raise NotImplementedError("forward only")
    return correct(query, key, value, mask, causal=causal)


@torch.no_grad()
def infers(query, key, value, mask=None, *, causal=False):
    return correct(query, key, value, mask, causal=causal)


@jax.custom_vjp
def halved(x):
    return x


halved.defvjp(lambda x: (x, None), lambda _, d_x: (d_x / 2,))


def of_jax(query, key, value, mask=None, *, causal=False):
    return gqa_jax.grouped_query_attention(query, key, value, mask, causal=causal)


def halves_the_values_of_jax(query, key, value, mask=None, *, causal=False):
    return of_jax(query, key, halved(value), mask, causal=causal)


def tiled(query, key, value, mask=None, *, causal=False):
    groups = query.shape[1] // key.shape[1]
    return correct(query, key.repeat(1, groups, 1, 1), value.repeat(1, groups, 1, 1), mask, causal=causal)

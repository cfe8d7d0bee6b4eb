"""A mixture of experts: a router sends each token to a few of many feed-forwards. SPEC 20."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Integer

from gqa_numpy.feed_forward import feed_forward
from gqa_numpy.linear import gated, linear
from gqa_numpy.precision import compute_dtype
from gqa_spec import ExpertsConfig

Array = np.ndarray
PREFIX = "feed_forward."


def mixture(
    x: Float[Array, "B T D"], parameters: Mapping[str, Array], config: ExpertsConfig, activation: str
) -> Float[Array, "B T D"]:
    """The sum of each token's experts, times their weights, and of the shared feed-forward; rounded once."""
    tokens, dtype = x.reshape(-1, x.shape[-1]), compute_dtype(x.dtype)
    router = f"{PREFIX}router."
    chosen, weights = route(linear(tokens, parameters[f"{router}weight"], parameters.get(f"{router}bias")), config)
    total = np.zeros(tokens.shape, dtype)
    for number in range(config.num_experts):
        rows, places = np.nonzero(chosen == number)
        if rows.size:
            result = feed_forward(tokens[rows], parameters, f"{PREFIX}experts.{number}.", activation, config)
            total[rows] += weights[rows, places, None] * result
    if config.shared_size is not None:
        total += _shared(tokens, parameters, config, activation)
    return total.astype(x.dtype).reshape(x.shape)


def route(
    logits: Float[Array, "tokens X"], config: ExpertsConfig
) -> tuple[Integer[Array, "tokens chosen"], Float[Array, "tokens chosen"]]:
    """The experts of each token, by falling logit, of equal ones the first; and their weights in the compute dtype."""
    wide = logits.astype(compute_dtype(logits.dtype))
    chosen = np.argsort(-wide, axis=-1, kind="stable")[:, : config.num_experts_per_token]
    of_chosen = np.take_along_axis(wide, chosen, axis=-1)
    above = of_chosen[:, :1]  # the largest of all
    with np.errstate(invalid="ignore"):  # a poisoned token stays with itself
        shares = np.exp(of_chosen - above)
        everything = shares if config.normalise else np.exp(wide - above)
        return chosen, shares / everything.sum(axis=-1, keepdims=True)


def _shared(
    tokens: Float[Array, "tokens D"], parameters: Mapping[str, Array], config: ExpertsConfig, activation: str
) -> Float[Array, "tokens D"]:
    result = feed_forward(tokens, parameters, f"{PREFIX}shared.", activation)
    if not config.shared_gate:
        return result
    return gated(result, linear(tokens, parameters[f"{PREFIX}shared_gate.weight"], None))

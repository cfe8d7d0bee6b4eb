"""Numbers that a case needs besides random ones: large, equal or tiny, or scores that grow along the keys."""

from __future__ import annotations

import numpy as np

from conformance.cases.features import ValueKind

Array = np.ndarray


def changed(
    kind: ValueKind, query: Array, key: Array, value: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """query (B, N, T, H), key (B, K, S, H) and value (B, K, S, Hv), drawn from N(0, 1), as the kind says."""
    S, H = key.shape[2:]
    match kind:
        case "large scores":  # up to some hundreds, of either sign
            return query * 100, key, value
        case "products past 65504":
            return query * 1e3, key * 1e3, value  # the products, not the inputs, are past float16
        case "scores below -1e9":  # about -1e10, all of them
            return np.abs(query) * 1e5 + 1e5, -np.abs(key) * 1e5, value
        case "equal scores":  # of all keys for the first query, of neighbours for the others
            query[:, :, 0] = 0
            return query, key[:, :, np.arange(S) // 2 * 2], value
        case "scores that grow" | "scores that fall":  # by 30 from the first key to the last
            direction = rng.choice([-1.0, 1.0], size=H)
            steps = np.linspace(0, 30, S) if kind == "scores that grow" else np.linspace(30, 0, S)
            queries = direction + 0.1 * query
            return queries, 0.3 * key + (steps * H**-0.5)[:, None] * direction, value
        case "one key for each query":
            key = 30 * key / np.linalg.norm(key, axis=-1, keepdims=True)
            own = np.arange(query.shape[2]) % S
            return key.repeat(query.shape[1] // key.shape[1], axis=1)[:, :, own], key, value
        case "weights that underflow":  # weights of every size down to 0
            return query * 800, key, value
        case "tiny inputs":
            return query * 1e-4, key * 1e-4, value * 1e-4
        case "NaN in a visible value":  # one number of one value of one KV head
            value[0, 0, 1, 0] = np.nan
            return query, key, value
        case "large values":
            return query, key, value * 3e5

"""`Transformer.from_checkpoint`: small random models of transformers, family by family, to the logits of every backend.

The oracle is gqa_numpy in float64 on the weights as they were saved; transformers' own logits are held to it by the
same bound (SPEC 15) as ours are.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.cases.compare import bound, error_of
from tests.weights.small_models import CASES, WHOLE, saved

pytestmark = pytest.mark.no_shape_checks
FAMILIES = [case for case in WHOLE if case == CASES[case][0] or case == "gemma3"]
B, LENGTHS = 3, (13, 9, 11)  # longer than every window, and than longrope's original context
BACKENDS = ("torch", "jax")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@cache
def batch(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, vocab_size, (B, max(LENGTHS)))


def transformer(backend: str, path: Path, dtype: str | None) -> Any:
    """The model that this backend reads."""
    if backend == "numpy":
        from gqa_numpy import Transformer

        return Transformer.from_checkpoint(path, dtype)
    if backend == "torch":
        import torch

        from gqa_torch import Transformer

        return Transformer.from_checkpoint(path, None if dtype is None else getattr(torch, dtype))
    from gqa_jax import Transformer

    return Transformer.from_checkpoint(path, dtype)


def logits(backend: str, model: Any, tokens: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    if backend == "numpy":
        return model(tokens, lengths=lengths)
    if backend == "torch":
        import torch

        with torch.no_grad():
            padded = None if lengths is None else torch.from_numpy(lengths)
            return model(torch.from_numpy(tokens), lengths=padded).numpy()
    import jax.numpy as jnp
    from flax import nnx

    padded = None if lengths is None else jnp.asarray(lengths)
    return np.asarray(nnx.jit(lambda m, t, n: m(t, lengths=n))(model, jnp.asarray(tokens), padded))


@cache
def references(case: str, folder: Path) -> tuple[np.ndarray, float]:
    """The oracle's logits, and what an error in float32 may be."""
    _, path = saved(case, folder)
    oracle = transformer("numpy", path, "float64")
    tokens = batch(oracle.config.vocab_size)
    lengths = np.array(LENGTHS)
    reference = _real(logits("numpy", oracle, tokens, lengths))
    plain = _real(logits("numpy", transformer("numpy", path, "float32"), tokens, lengths))
    assert plain.dtype == np.float32
    return reference, bound("float32", error_of(plain, reference))


def _real(x: np.ndarray) -> np.ndarray:
    """The rows of real tokens, one after the other."""
    return np.concatenate([x[row, :length] for row, length in enumerate(LENGTHS)])


@pytest.mark.parametrize("case", FAMILIES)
def test_transformers_has_the_oracles_logits(case: str, folder: Path) -> None:
    import torch

    model, _ = saved(case, folder)
    reference, allowed = references(case, folder)
    tokens = torch.from_numpy(batch(model.config.vocab_size))
    with torch.no_grad():
        alone = [model(tokens[row : row + 1, :length]).logits[0] for row, length in enumerate(LENGTHS)]
    assert error_of(torch.cat(alone).numpy(), reference) <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", FAMILIES)
def test_every_backend_has_the_oracles_logits(case: str, backend: str, folder: Path) -> None:
    reference, allowed = references(case, folder)
    model = transformer(backend, saved(case, folder)[1], "float32")
    got = logits(backend, model, batch(model.config.vocab_size), np.array(LENGTHS))
    assert got.dtype == np.float32
    assert error_of(_real(got), reference) <= allowed


@pytest.fixture(scope="module")
def half(folder: Path) -> Path:
    import torch

    model, _ = saved("llama plain", folder)
    path = folder / "half"
    model.to(torch.bfloat16).save_pretrained(path)
    model.float()
    return path


def test_the_files_dtype_is_kept(half: Path) -> None:
    exported = [transformer(backend, half, None).export_weights() for backend in ("numpy", *BACKENDS)]
    assert {str(x.dtype) for weights in exported for x in weights.values()} == {"bfloat16"}
    for name, x in exported[0].items():
        assert all((weights[name] == x).all() for weights in exported), name


@pytest.mark.parametrize("backend", ["numpy", *BACKENDS])
def test_a_dtype_can_be_asked_for(backend: str, half: Path) -> None:
    wide, narrow = (transformer(backend, half, dtype).export_weights() for dtype in ("float32", "float16"))
    kept = transformer(backend, half, None).export_weights()
    assert {str(x.dtype) for x in wide.values()} == {"float32"}
    assert {str(x.dtype) for x in narrow.values()} == {"float16"}
    assert all((wide[name] == x.astype(np.float32)).all() for name, x in kept.items())


@pytest.mark.parametrize("backend", ["numpy", *BACKENDS])
def test_a_model_from_a_checkpoint_is_in_eval_mode(backend: str, half: Path) -> None:
    model = transformer(backend, half, None)
    if backend == "jax":
        from flax import nnx

        modules = [module for _, module in nnx.iter_modules(model) if hasattr(module, "deterministic")]
        assert modules
        assert all(module.deterministic for module in modules)
    else:
        assert not model.training
        assert not any(block.training or block.attention.training for block in model.blocks)

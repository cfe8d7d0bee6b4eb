"""A whole model from a `ModelConfig`: embedding, blocks, norm, and logits or the last hidden state. SPEC 18."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Integer

from gqa_jax import masks
from gqa_jax.block import Block, Norm
from gqa_jax.cache import KVCache
from gqa_jax.layer import available
from gqa_jax.linear import linear, parameter, project
from gqa_jax.precision import compute_dtype, matmul_precision
from gqa_spec import ModelConfig, checks
from gqa_spec.generation import Callback, Request
from gqa_spec.model_config import model_symbolic_shapes, model_weight_shapes
from gqa_weights.checkpoint import Checkpoint, open_checkpoint
from gqa_weights.families import read_model

Caches = tuple[KVCache, ...]


class Transformer(nnx.Module):
    """A stack of blocks between an embedding and logits, or the last position's hidden state.

    rngs draws the initial values ("params") and dropout ("dropout"); dtype is that of vectors and results (param_dtype
    when None), param_dtype that of the weights. A new model is in training mode, one from a checkpoint in eval mode.
    """

    def __init__(
        self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: Any = None, param_dtype: Any = jnp.float32
    ) -> None:
        checks.instance("config", config, ModelConfig)
        self.config = config
        self.param_dtype = available(param_dtype)
        self.dtype = self.param_dtype if dtype is None else available(dtype)
        options = (rngs, self.dtype, self.param_dtype)
        if config.vocab_size is not None:
            self.embed: Any = _Embedding((config.vocab_size, config.hidden_size), rngs, self.param_dtype)
        else:
            self.embed = linear((config.hidden_size, config.input_dim or 0), True, *options)
        self.blocks = nnx.List(Block(config, i, *options) for i in range(config.num_layers))
        self.norm = Norm(config, self.param_dtype)
        own_head = config.output == "logits" and not config.tied
        self.head = linear((config.output_size, config.hidden_size), False, *options) if own_head else None
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs if config.dropout > 0 else None)

    @classmethod
    def from_checkpoint(cls, path: str | Path | Checkpoint, dtype: Any = None) -> Self:
        """A model in eval mode from a Hugging Face folder or a GGUF file (or what
        `open_checkpoint` made of one); dtype is the widest of the checkpoint's when None, which rounds no weight.

        Raises CheckpointError for a file that cannot be read, ValueError for an unknown family or setting.
        """
        read = read_model(path if isinstance(path, Checkpoint) else open_checkpoint(path))
        dtype = available(read.dtype if dtype is None else dtype)

        def new() -> Any:
            return cls(read.config, rngs=nnx.Rngs(0), param_dtype=dtype)

        model = nnx.eval_shape(new)
        nnx.update(model, jax.jit(lambda: nnx.state(new(), nnx.RngState))())  # of dropout: all that no file holds
        for name in model_weight_shapes(read.config):
            _set(model, name, read.weights[name], dtype)
        return model.eval()

    def train(self, **attributes: Any) -> Self:
        super().train(**attributes)  # type: ignore[no-untyped-call, unused-ignore]
        return self

    def eval(self, **attributes: Any) -> Self:
        super().eval(**attributes)  # type: ignore[no-untyped-call, unused-ignore]
        return self

    def __call__(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T I"],
        *,
        lengths: Integer[Array, "B"] | None = None,
        rope_length: int | None = None,
        hidden_states: bool = False,
    ) -> Any:
        """Logits (B, T, V), or with output="last_hidden" the last position's normed state (B, D).

        tokens: integers, or vectors of the model's dtype where the config has an input_dim. lengths: how many of each
        row are real (right-padded), T by default; the others are not attended to, and what is returned for them means
        nothing. rope_length as for `GroupedQueryAttention`. With hidden_states a pair: the result, and the states
        (B, T, D) after the embedding and after each block. Raises ValueError for shapes and values, TypeError for
        dtypes; under jit, where values are unknown, a token out of range becomes NaN.
        """
        count = self._count(tokens, lengths)
        mask = None if lengths is None else masks.padding(count, tokens.shape[1])
        states = [self._embed(tokens)]
        for block in self.blocks:
            states.append(block(states[-1], mask, rope_length))
        result = self._result(states[-1], count, last=False)
        return (result, tuple(states)) if hidden_states else result

    def init_cache(self, batch_size: int, max_length: int, *, dtype: Any = None) -> Caches:
        """An empty cache for `extend`, one for each layer; rolling where a layer's window is shorter than max_length.

        dtype is the model's when None. Raises ValueError for a model that is not causal.
        """
        return tuple(
            block.attention.init_cache(batch_size, max_length, rolling=rolls, dtype=dtype)
            for block, rolls in zip(self.blocks, self.config.rolling(max_length), strict=True)
        )

    def extend(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T I"],
        cache: Caches,
        *,
        lengths: Integer[Array, "B"] | None = None,
        last: bool = False,
    ) -> tuple[Array, Caches]:
        """Append tokens to the cache and return what one whole pass would for them, with the longer cache.

        lengths: how many of each row are real, as in `GroupedQueryAttention.extend`. last: logits (B, V) of each row's
        last real token alone, 0 where a row has none. Raises ValueError where a row has no room; under jit, where it
        cannot, that row is NaN from then on.
        """
        count = self._count(tokens, lengths)
        checks.model_cache(cache, self.config.num_layers, KVCache)
        x, longer = self._embed(tokens), []
        for block, held in zip(self.blocks, cache, strict=True):
            x, extended = block.extend(x, held, lengths)
            longer.append(extended)
        return self._result(x, count, last), tuple(longer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Collection[int] = (),
        uniforms: Any = None,
        callback: Callback | None = None,
    ) -> list[list[int]]:
        """New tokens for each prompt, up to max_new_tokens or the first stop token, which is included.

        prompts: lists of token ids, of any lengths. temperature 0 takes the likeliest token; else temperature, top_k
        and top_p narrow the choice in this order, and uniforms (B, max_new_tokens) in [0, 1), drawn where None, make
        it: the same in all backends (SPEC 19). callback: told of each step's tokens, None for a row that has ended.
        Raises ValueError and TypeError for bad prompts and settings. Compiled once for each bucket of prompt lengths
        and once for all later steps.
        """
        request = Request.of(self.config, prompts, max_new_tokens, temperature, top_k, top_p, stop_tokens, uniforms)
        cache = self.init_cache(request.batch_size, request.cache_length)
        graph, state = nnx.split(self)
        structure = _Structure(graph)

        def step(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            nonlocal cache
            logits, cache = compiled_step(structure, state, jnp.asarray(tokens), cache, jnp.asarray(lengths))
            return np.asarray(logits.astype(compute_dtype(logits.dtype)))

        return request.run(step, callback, bucketed=True)

    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy canonical weights into place, all or none.

        Raises ValueError that names every missing, unexpected and misshapen one, TypeError for a narrowing cast.
        """
        arrays = {name: np.asarray(x) for name, x in mapping.items()}
        shapes, symbols = model_weight_shapes(self.config), model_symbolic_shapes(self.config)
        checks.weights(arrays, shapes, symbols, str(self.param_dtype))
        for name, x in arrays.items():
            _set(self, name, x, self.param_dtype)
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Canonical names -> NumPy arrays, copied."""
        exported = {}
        for name in model_weight_shapes(self.config):
            variable, transposed = parameter(self, name)
            x = np.asarray(variable[...])
            exported[name] = np.array(x.T if transposed else x, order="C")
        return exported

    def _count(self, tokens: Array, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of each row's tokens are real, once everything that is not traced has been checked."""
        checks.model_input(self.config, str(self.dtype), tokens, Array)
        B, T = tokens.shape[:2]
        if self.config.vocab_size is not None and B and not isinstance(tokens, jax.core.Tracer):
            checks.token_ids(int(tokens.min()), int(tokens.max()), self.config.vocab_size)
        if lengths is None:
            return jnp.full(B, T)
        checks.cache_lengths(lengths, Array, B)
        if not isinstance(lengths, jax.core.Tracer):
            checks.cache_lengths_in_chunk(lengths.tolist(), T)
        return jnp.clip(lengths.astype(int), 0, T)

    def _embed(self, tokens: Array) -> Float[Array, "B T D"]:
        if self.config.vocab_size is None:
            return self.dropout(project(self.embed, tokens))
        rows = self.embed.weight[...].at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return self.dropout(rows.astype(self.dtype) * jnp.asarray(self.config.embedding_scale, self.dtype))

    def _result(self, x: Float[Array, "B T D"], count: Integer[Array, "B"], last: bool) -> Array:
        """From the last block's states to logits, or to the last position's hidden state."""
        if last or self.config.output == "last_hidden":
            x = _last(x, count)
        x = self.norm(x)
        if self.config.output == "last_hidden":
            return _real(x, count)
        dtype = compute_dtype(self.dtype)
        if self.head is not None:
            logits = project(self.head, x)
        else:
            weight = self.embed.weight[...].astype(self.dtype)
            wide: Any = {"precision": matmul_precision(self.dtype), "preferred_element_type": dtype}
            logits = jnp.einsum("...d,vd->...v", x, weight, **wide).astype(self.dtype)
        if self.config.logit_softcap is not None:
            cap = jnp.asarray(self.config.logit_softcap, dtype)
            logits = (jnp.tanh(logits.astype(dtype) / cap) * cap).astype(self.dtype)
        return _real(logits, count) if last else logits


class _Structure:
    """A model without its arrays, as `compiled_step` takes it: hashed once, since a hash walks the whole model."""

    def __init__(self, graph: Any) -> None:
        self.graph, self._hash = graph, hash(graph)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self.graph == other.graph


@partial(jax.jit, static_argnames="structure", donate_argnames="cache")
def compiled_step(
    structure: _Structure, state: Any, tokens: Array, cache: Caches, lengths: Array
) -> tuple[Array, Caches]:
    """`extend` with last=True, for a model split by `nnx.split`: the storage of the given cache becomes the next one's.

    Not nnx.jit, which walks the whole model anew at each call.
    """
    return nnx.merge(structure.graph, state).extend(tokens, cache, lengths=lengths, last=True)


class _Embedding(nnx.Module):
    """One row for each token; SPEC 17: uniform in +-D ** -0.5, as a tied head wants it."""

    def __init__(self, shape: tuple[int, int], rngs: nnx.Rngs, dtype: Any) -> None:
        bound = shape[1] ** -0.5
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), shape, dtype, -bound, bound))


def _set(model: Transformer, name: str, x: np.ndarray, dtype: Any) -> None:
    variable, transposed = parameter(model, name)
    variable.set_value(jnp.array(x.T if transposed else x, dtype))


def _last(x: Float[Array, "B T D"], count: Integer[Array, "B"]) -> Float[Array, "B D"]:
    return x[jnp.arange(x.shape[0]), jnp.maximum(count, 1) - 1]


def _real(x: Float[Array, "B W"], count: Integer[Array, "B"]) -> Float[Array, "B W"]:
    """0 for the rows that have no token."""
    return jnp.where(count[:, None] > 0, x, 0)

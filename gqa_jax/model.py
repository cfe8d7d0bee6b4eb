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

from gqa_jax import decoding, masks
from gqa_jax.arrays import as_array, check_sharding, known
from gqa_jax.block import Block, Norm, scaled
from gqa_jax.cache import KVCache, ModelCache
from gqa_jax.dropout import Dropout
from gqa_jax.experts import stacked
from gqa_jax.layer import available
from gqa_jax.linear import Embedding, linear, parameter, project, set_parameter
from gqa_jax.precision import compute_dtype, matmul_precision
from gqa_spec import ModelConfig, checks
from gqa_spec.generation import Callback, Request
from gqa_spec.model_config import model_symbolic_shapes, model_weight_shapes
from gqa_weights.checkpoint import Checkpoint, open_checkpoint
from gqa_weights.families import read_model, reader_of

Caches = tuple[KVCache, ...]


class Transformer(nnx.Module):
    """A stack of blocks between an embedding and logits, or the last position's hidden state.

    A new model is in training mode, one from a checkpoint in eval mode.

    Args:
        config: The settings.
        rngs: Draws the initial values (stream `params`) and dropout (stream `dropout`).
        dtype: Of vectors and results; param_dtype by default.
        param_dtype: Of the weights.
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
            self.embed: Any = Embedding((config.vocab_size, config.hidden_size), rngs, self.param_dtype)
        else:
            self.embed = linear((config.hidden_size, config.input_dim or 0), True, *options)
        self.blocks = nnx.List(Block(config, i, *options) for i in range(config.num_layers))
        self.norm = Norm(config, self.param_dtype)
        own_head = config.output == "logits" and not config.tied
        self.head = linear((config.output_size, config.hidden_size), config.head_bias, *options) if own_head else None
        self.dropout = Dropout(config.dropout, rngs)

    @classmethod
    def from_checkpoint(cls, path: str | Path | Checkpoint, dtype: Any = None) -> Self:
        """Make a model in eval mode from a checkpoint.

        Args:
            path: A Hugging Face folder or a GGUF file, or what `open_checkpoint` returned for one.
            dtype: Of the weights; the widest of the checkpoint's by default, which rounds no weight.

        Raises:
            CheckpointError: For a file that cannot be read.
            ValueError: For an unknown family or setting.
        """
        read = read_model(path if isinstance(path, Checkpoint) else open_checkpoint(path))
        dtype = available(read.dtype if dtype is None else dtype)

        def new() -> Any:
            return cls(read.config, rngs=nnx.Rngs(0), param_dtype=dtype)

        model = nnx.eval_shape(new)
        drawn = jax.jit(lambda: nnx.state(new(), nnx.RngState))()  # of dropout: all else is in the file
        nnx.update(model, drawn)
        _fill(model, read.weights, dtype)
        return model.eval()

    def train(self, **attributes: Any) -> Self:
        super().train(**attributes)  # type: ignore[no-untyped-call, unused-ignore]
        return self

    def eval(self, **attributes: Any) -> Self:
        super().eval(**attributes)  # type: ignore[no-untyped-call, unused-ignore]
        return self

    def __call__(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T _"],
        *,
        mask: Array | None = None,
        positions: Integer[Array, "..."] | None = None,
        segments: Integer[Array, "B T"] | None = None,
        lengths: Integer[Array, "B"] | None = None,
        rope_length: int | None = None,
        hidden_states: bool = False,
    ) -> Any:
        """Run the model on whole sequences.

        Args:
            tokens: Integers (B, T), or their embeddings, vectors (B, T, D) of the model's dtype; where the config
                has an input_dim, vectors (B, T, I).
            mask: As for `GroupedQueryAttention`: (T, T), or 4 axes that broadcast to (B, N, T, T). For left padding,
                `real[:, None, None, :]` where real (B, T) is False at the padding.
            positions: By which RoPE rotates, (T,) or (B, T); 0 to T - 1 by default. With left padding, count from the
                first real token.
            segments: Which document each token is of, (B, T); tokens attend only to their own document.
            lengths: How many of each row are real (right-padded), (B,); T by default. The others are not attended to,
                and what is returned for them means nothing.
            rope_length: As for `GroupedQueryAttention`.
            hidden_states: Whether to return the states too.

        Returns:
            Logits (B, T, V), or with output="last_hidden" the last position's normed state (B, D). With hidden_states a
            pair: this, and the states (B, T, D) after the embedding and after each block.

        Raises:
            ValueError: For a wrong shape or value (SPEC 14). Under jit, where values are unknown, a token out of range
                gives NaN.
            TypeError: For a wrong type or dtype.
        """
        tokens, mask, positions, segments, lengths = map(as_array, (tokens, mask, positions, segments, lengths))
        count = self._count(tokens, lengths)
        checks.model_call(self.config, tokens, mask, positions, segments, Array)
        conditions = [] if mask is None else [mask]
        conditions += [] if segments is None else [masks.segments(segments, segments)]
        conditions += [] if lengths is None else [masks.padding(count, tokens.shape[1])]
        mask = masks.combine(*conditions) if conditions else None
        states = [self._embed(tokens, deterministic=None)]
        for block in self.blocks:
            states.append(block(states[-1], mask, positions, rope_length))
        result = self._result(states[-1], count, last=False)
        return (result, tuple(states)) if hidden_states else result

    def init_cache(self, batch_size: int, max_length: int, *, rolling: bool = True, dtype: Any = None) -> ModelCache:
        """Make an empty cache for `extend`: one for each layer, rolling where its window is shorter than max_length.

        Args:
            batch_size: B, the number of rows.
            max_length: How many tokens each row can have.
            rolling: False keeps every token in every layer, as `truncate` needs.
            dtype: Of keys and values; the model's by default.

        Raises:
            ValueError: For a model that is not causal.
            TypeError: For a wrong type or dtype.
        """
        return ModelCache(
            block.attention.init_cache(batch_size, max_length, rolling=rolls and rolling, dtype=dtype)
            for block, rolls in zip(self.blocks, self.config.rolling(max_length), strict=True)
        )

    def extend(
        self,
        tokens: Integer[Array, "B T"] | Float[Array, "B T _"],
        cache: Caches,
        *,
        lengths: Integer[Array, "B"] | None = None,
        last: bool = False,
    ) -> tuple[Array, ModelCache]:
        """Append tokens to a cache and return what one whole pass would for them.

        Args:
            tokens: As in a call of the model.
            cache: The cache so far. It stays as it is and may be extended again.
            lengths: How many of each row are real, (B,), as for `GroupedQueryAttention.extend`.
            last: Whether to return the logits of each row's last real token alone.

        Returns:
            As from a call of the model, or with last logits (B, V), 0 for a row without a real token; and the new
            cache.

        Raises:
            ValueError: For a wrong shape or value, or a full row. Under jit, where a full row cannot
                raise, its output is NaN from then on.
            TypeError: For a wrong type or dtype.
        """
        tokens, lengths = as_array(tokens), as_array(lengths)
        count = self._count(tokens, lengths)
        checks.model_cache(cache, self.config.num_layers, KVCache)
        x, new_caches = self._embed(tokens, deterministic=True), []
        for block, held in zip(self.blocks, cache, strict=True):
            x, new_cache = block.extend(x, held, lengths)
            new_caches.append(new_cache)
        return self._result(x, count, last), ModelCache(new_caches)

    def generate(
        self,
        prompts: Sequence[Sequence[int]] | Any,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Collection[int] = (),
        uniforms: Any = None,
        seed: int | None = None,
        cache: Caches | None = None,
        callback: Callback | None = None,
    ) -> Any:
        """Continue each prompt as if it were alone (SPEC 19).

        Compiled once for each bucket of prompt lengths and once for all later steps.

        Args:
            prompts: Lists of token ids, of any lengths, or an array (B, T).
            max_new_tokens: How many tokens each row gets at most.
            temperature: 0 takes the likeliest token; above 0 one is sampled from softmax(logits / temperature).
            top_k: Sample from the k likeliest tokens only.
            top_p: Then from the fewest likeliest tokens that have this probability together.
            stop_tokens: A row ends with the first of these, which is returned too.
            uniforms: Numbers in [0, 1) that choose the tokens, (B, max_new_tokens), the same in all backends; drawn by
                default.
            seed: Of the numbers that are drawn.
            cache: What comes before the prompts: earlier turns, or a prefix that all rows share (`repeat`). It needs
                free slots for prompts and new tokens. It stays as it is.
            callback: Called with the tokens of each step, None for a row that has ended.

        Returns:
            The new tokens of each row. With cache a pair: these, and the new cache, which holds every one of them.

        Raises:
            ValueError: For bad prompts or settings.
            TypeError: For a wrong type.
        """
        held_tokens = None if cache is None else self._lengths_of(cache)
        sampling = (temperature, top_k, top_p, stop_tokens, uniforms)
        request = Request.of(self.config, prompts, max_new_tokens, *sampling, seed=seed, held=held_tokens)
        if cache is None:
            held = self.init_cache(request.batch_size, request.cache_length)
        else:
            self._check_free_slots(cache, request.most_tokens)
            held = ModelCache(cache).clone()  # each step is given the storage of the cache before
        graph, state = nnx.split(self)
        structure = _Structure(graph)

        def step(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            nonlocal held
            logits, held = compiled_step(structure, state, jnp.asarray(tokens), held, jnp.asarray(lengths))
            return np.asarray(logits.astype(compute_dtype(logits.dtype)))

        new_tokens = request.run(step, callback, bucketed=True, complete=cache is not None)
        return new_tokens if cache is None else (new_tokens, held)

    def load_weights(self, mapping: Mapping[str, Any]) -> Self:
        """Copy weights into place, all or none.

        Args:
            mapping: Canonical names to arrays.

        Returns:
            The model itself.

        Raises:
            ValueError: Names every missing, unexpected and misshapen weight.
            TypeError: For a cast that could lose bits.
        """
        arrays = {name: np.asarray(x) for name, x in mapping.items()}
        shapes, symbols = model_weight_shapes(self.config), model_symbolic_shapes(self.config)
        checks.weights(arrays, shapes, symbols, str(self.param_dtype))
        _fill(self, arrays, self.param_dtype)
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Copy the weights into NumPy arrays.

        Returns:
            Canonical names to arrays.
        """
        exported = {}
        for name in model_weight_shapes(self.config):
            whole = stacked(name)
            variable, transposed = parameter(self, whole or name)
            x = np.asarray(variable[...] if whole is None else variable[...][_expert(name)])
            exported[name] = np.array(x.T if transposed else x, order="C")
        return exported

    def _count(self, tokens: Array, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of each row's tokens are real, after every check that needs no traced value."""
        check_sharding("tokens", tokens)
        checks.model_input(self.config, str(self.dtype), tokens, Array)
        vocab_size, numbers = self.config.vocab_size, known(tokens)
        if vocab_size is not None and tokens.ndim == 2 and numbers is not None and numbers.size:
            checks.token_ids(int(numbers.min()), int(numbers.max()), vocab_size)
        return decoding.real_tokens(tokens, lengths)

    def _lengths_of(self, cache: Any) -> list[int] | None:
        """How many tokens each row of a cache has, where that is known."""
        checks.model_cache(cache, self.config.num_layers, KVCache)
        length = known(cache[0].length)
        return None if length is None else length.tolist()

    def _check_free_slots(self, cache: Caches, counts: list[int]) -> None:
        for held in cache:
            held.check_free_slots(np.array(counts))

    def _embed(self, tokens: Array, *, deterministic: bool | None) -> Float[Array, "B T D"]:
        if self.config.vocab_size is None:
            return self.dropout(project(self.embed, tokens), deterministic=deterministic)
        if tokens.ndim == 3:
            return self.dropout(tokens, deterministic=deterministic)
        rows = self.embed.weight[...].at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        scaled = rows.astype(self.dtype) * jnp.asarray(self.config.embedding_scale, self.dtype)
        return self.dropout(scaled, deterministic=deterministic)

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
        logits = scaled(logits, self.config.logit_scale)
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


def _fill(model: Transformer, weights: Mapping[str, np.ndarray], dtype: Any) -> None:
    """Put every canonical weight into its place: those of experts, in their order, into one array."""
    gathered: dict[str, list[np.ndarray]] = {}
    for name in model_weight_shapes(model.config):
        whole = stacked(name)
        if whole is None:
            set_parameter(model, name, reader_of(weights, name), dtype)
            continue
        pieces = gathered.setdefault(whole, [])
        pieces.append(weights[name])
        if model.config.experts is not None and len(pieces) == model.config.experts.num_experts:
            set_parameter(model, whole, np.stack(gathered.pop(whole)).__getitem__, dtype)


def _expert(name: str) -> int:
    """The number in a canonical name of an expert's weight."""
    return int(name.rsplit(".", 3)[1])


def _last(x: Float[Array, "B T D"], count: Integer[Array, "B"]) -> Float[Array, "B D"]:
    return x[jnp.arange(x.shape[0]), jnp.maximum(count, 1) - 1]


def _real(x: Float[Array, "B W"], count: Integer[Array, "B"]) -> Float[Array, "B W"]:
    """0 for the rows that have no token."""
    return jnp.where(count[:, None] > 0, x, 0)

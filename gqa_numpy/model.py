"""A whole model from a `ModelConfig`: embedding, blocks, norm, and logits or the last hidden state. SPEC 18."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Integer

from gqa_numpy import decoding, masks
from gqa_numpy.block import Block, dropped, norm, scaled
from gqa_numpy.cache import KVCache, ModelCache, consume
from gqa_numpy.linear import initial, linear
from gqa_numpy.precision import compute_dtype
from gqa_spec import ModelConfig, checks
from gqa_spec.generation import Callback, Request
from gqa_spec.model_config import model_symbolic_shapes, model_weight_shapes
from gqa_weights.checkpoint import Checkpoint, open_checkpoint
from gqa_weights.families import read_model

Array = np.ndarray
Caches = tuple[KVCache, ...]


class Transformer:
    """A stack of blocks between an embedding and logits, or the last position's hidden state.

    A new model is in training mode, one from a checkpoint in eval mode.

    Args:
        config: The settings.
        rng: Draws the initial values and dropout; `numpy.random.default_rng()` by default.
        dtype: Of weights, vectors and results.
    """

    def __init__(self, config: ModelConfig, *, rng: np.random.Generator | None = None, dtype: Any = np.float64) -> None:
        checks.instance("config", config, ModelConfig)
        self.config = config
        self.rng = np.random.default_rng() if rng is None else rng
        self.dtype = np.dtype(dtype)
        self.training, self.dropout = True, config.dropout
        self.blocks = [Block(config, i, self.rng, self.dtype) for i in range(config.num_layers)]
        self.parameters = {
            name: initial(name, shape, self.rng, plus_one=config.norm.endswith("plus_one")).astype(self.dtype)
            for name, shape in model_weight_shapes(config).items()
            if not name.startswith("blocks.")
        }

    @classmethod
    def from_checkpoint(cls, path: str | Path | Checkpoint, dtype: Any = None) -> Self:
        """Make a model in eval mode from a checkpoint.

        Args:
            path: A Hugging Face folder or a GGUF file, or what `open_checkpoint` returned for one.
            dtype: Of the parameters; the widest of the checkpoint's by default, which rounds no weight.

        Raises:
            CheckpointError: For a file that cannot be read.
            ValueError: For an unknown family or setting.
        """
        read = read_model(path if isinstance(path, Checkpoint) else open_checkpoint(path))
        dtype = np.dtype(read.dtype if dtype is None else dtype)
        model = cls(read.config, rng=_Undrawn(), dtype=dtype)  # type: ignore[arg-type]
        for name in model_weight_shapes(read.config):
            owner, key = model._place(name)
            owner[key] = read.weights[name].astype(dtype, copy=False)
        model._draw_from(np.random.default_rng())
        return model.eval()

    def __repr__(self) -> str:
        layers = f"{self.config.num_layers} layers of {self.config.attention[0].summary()}"
        return f"{type(self).__name__}({layers}, dtype={self.dtype})"

    def train(self) -> Self:
        return self._set("training", True)

    def eval(self) -> Self:
        return self._set("training", False)

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
            ValueError: For a wrong shape or value (SPEC 14).
            TypeError: For a wrong type or dtype.
        """
        count = self._count(tokens, lengths)
        checks.model_call(self.config, tokens, mask, positions, segments, Array)
        conditions = [] if mask is None else [mask]
        conditions += [] if segments is None else [masks.segments(segments, segments)]
        conditions += [] if lengths is None else [masks.padding(count, tokens.shape[1])]
        mask = masks.combine(*conditions) if conditions else None
        states = [self._embed(tokens, training=self.training)]
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
            cache: The cache so far. Its storage is written, and it is consumed: it cannot be extended again.
            lengths: How many of each row are real, (B,), as for `GroupedQueryAttention.extend`.
            last: Whether to return the logits of each row's last real token alone.

        Returns:
            As from a call of the model, or with last logits (B, V), 0 for a row without a real token; and the new
            cache, on the storage of the old one.

        Raises:
            ValueError: For a wrong shape or value, a consumed cache, or a full row; nothing is written then.
            TypeError: For a wrong type or dtype.
        """
        count = self._count(tokens, lengths)
        checks.model_cache(cache, self.config.num_layers, KVCache)
        for layer, held in zip(self.config.attention, cache, strict=True):
            shape = (*tokens.shape[:2], self.config.hidden_size)
            checks.extend(layer, shape, held.keys.shape, held.values.shape, held.rolling)
        self._check_free_slots(cache, count.tolist())
        consume(*cache)
        x, new_caches = self._embed(tokens, training=False), []
        for block, held in zip(self.blocks, cache, strict=True):
            x, new_cache = block.append(x, held, count)
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
                free slots for prompts and new tokens. It is consumed.
            callback: Called with the tokens of each step, None for a row that has ended.

        Returns:
            The new tokens of each row. With cache a pair: these, and the new cache, which holds every one of them.

        Raises:
            ValueError: For bad prompts or settings.
            TypeError: For a wrong type.
        """
        held_tokens = None if cache is None else self._lengths_of(cache)
        request = Request.of(
            self.config,
            prompts,
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            stop_tokens,
            uniforms,
            seed=seed,
            held=held_tokens,
        )
        held = self.init_cache(request.batch_size, request.cache_length) if cache is None else cache
        self._check_free_slots(held, request.most_tokens)

        def step(tokens: Array, lengths: Array) -> Array:
            nonlocal held
            logits, held = self.extend(tokens, held, lengths=lengths, last=True)
            return logits

        new_tokens = request.run(step, callback, complete=cache is not None)
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
        checks.weights(arrays, model_weight_shapes(self.config), model_symbolic_shapes(self.config), str(self.dtype))
        for name, x in arrays.items():
            owner, key = self._place(name)
            owner[key] = x.astype(self.dtype)
        return self

    def export_weights(self) -> dict[str, Array]:
        """Copy the weights into NumPy arrays.

        Returns:
            Canonical names to arrays.
        """
        places = {name: self._place(name) for name in model_weight_shapes(self.config)}
        return {name: owner[key].copy() for name, (owner, key) in places.items()}

    def _place(self, name: str) -> tuple[dict[str, Array], str]:
        """The dictionary that holds a canonical name, and its key there."""
        if not name.startswith("blocks."):
            return self.parameters, name
        _, number, rest = name.split(".", 2)
        block = self.blocks[int(number)]
        if rest.startswith("attention."):
            return block.attention.parameters, rest.removeprefix("attention.")
        return block.parameters, rest

    def _count(self, tokens: Array, lengths: Array | None) -> Integer[Array, "B"]:
        """How many of each row's tokens are real, after every check."""
        checks.model_input(self.config, str(self.dtype), tokens, Array)
        if self.config.vocab_size is not None and tokens.ndim == 2 and tokens.size:
            checks.token_ids(int(tokens.min()), int(tokens.max()), self.config.vocab_size)
        return decoding.real_tokens(tokens, lengths)

    def _lengths_of(self, cache: Any) -> list[int]:
        """How many tokens each row of a cache has."""
        checks.model_cache(cache, self.config.num_layers, KVCache)
        return cache[0].length.tolist()

    def _check_free_slots(self, cache: Caches, counts: list[int]) -> None:
        """Check every layer's cache before any is written."""
        for held in cache:
            held.check_free_slots(counts)

    def _embed(self, tokens: Array, *, training: bool) -> Float[Array, "B T D"]:
        weight = self.parameters["embed.weight"]
        if self.config.vocab_size is None:
            x = linear(tokens, weight, self.parameters["embed.bias"])
        elif tokens.ndim == 3:
            x = tokens
        else:
            x = weight[tokens] * self.dtype.type(self.config.embedding_scale)
        return dropped(x, self.dropout, self.rng) if training else x

    def _result(self, x: Float[Array, "B T D"], count: Integer[Array, "B"], last: bool) -> Array:
        """From the last block's states to logits, or to the last position's hidden state."""
        if last or self.config.output == "last_hidden":
            x = _last(x, count)
        x = norm("norm", x, self.parameters, self.config)
        if self.config.output == "last_hidden":
            return _real(x, count)
        head = self.parameters["embed.weight" if self.config.tied else "head.weight"]
        logits = scaled(linear(x, head, self.parameters.get("head.bias")), self.config.logit_scale)
        if self.config.logit_softcap is not None:
            dtype = compute_dtype(self.dtype)
            cap = dtype.type(self.config.logit_softcap)
            logits = (np.tanh(logits.astype(dtype) / cap) * cap).astype(self.dtype)
        return _real(logits, count) if last else logits

    def _set(self, attribute: str, value: Any) -> Self:
        for owner in (self, *self.blocks, *(block.attention for block in self.blocks)):
            setattr(owner, attribute, value)
        return self

    def _draw_from(self, rng: np.random.Generator) -> None:
        self._set("rng", rng)


def _last(x: Float[Array, "B T D"], count: Integer[Array, "B"]) -> Float[Array, "B D"]:
    return x[np.arange(len(x)), np.maximum(count, 1) - 1]


def _real(x: Float[Array, "B W"], count: Integer[Array, "B"]) -> Float[Array, "B W"]:
    """0 for the rows that have no token."""
    return np.where(count[:, None] > 0, x, x.dtype.type(0))


class _Undrawn:
    """A generator that draws nothing, for a model that a checkpoint fills: drawing would only cost time."""

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(np.float16(0), shape)

"""The settings of a whole transformer: attention settings for each layer, and what is around the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import groupby
from math import prod
from typing import Any, Literal, Self

from gqa_spec import checks
from gqa_spec.config import DERIVED, AttentionConfig, QKNorm, sized, symbolic_shapes
from gqa_spec.experts_config import ExpertsConfig, expert_shapes
from gqa_spec.rope import RopeConfig

Activation = Literal["gelu", "gelu_tanh", "relu2", "silu"]
Norm = Literal["layer", "layer_plus_one", "rms", "rms_plus_one"]
Parallel = Literal["own_norms", "shared_norm"]
NormPlacement = Literal["pre", "post", "both"]
Output = Literal["logits", "last_hidden"]
MOST_LAYERS = 10_000  # a false count in a file must not fill the memory


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The settings of a stack of blocks: norm, attention, residual, norm, feed-forward, residual (SPEC 18).

    Args:
        attention: The settings of each layer, in order; their embed_dim is the model's width, `hidden_size`.
        feed_forward_size: F, the width inside the feed-forward.
        vocab_size: V, of tokens that an embedding maps; None for a model of vectors.
        input_dim: I, the width of vectors that a linear map with bias maps; None for a model of tokens.
        output: "logits" over the vocabulary, or "last_hidden", the last position's normed state.
        norm: LayerNorm or RMS norm, times w, or with `_plus_one` times 1 + w.
        norm_eps: Added to the variance or mean square in each norm.
        norm_bias: Whether LayerNorm has a bias.
        norm_placement: Norms before each sublayer, after it (OLMo 2), or both (Gemma 2 and 3). A final norm follows the
            last block in every case.
        parallel: Whether the feed-forward reads the block's input beside attention, instead of what attention left,
            through a norm of its own or through attention's; None for one after the other.
        residual_scale: Factor on what each sublayer adds.
        activation: Exact GELU, its tanh approximation, the square of ReLU, or SiLU.
        gated: Whether the feed-forward is down(activation(gate(x)) * up(x)) instead of down(activation(up(x))).
        feed_forward_bias: Whether its maps have a bias.
        experts: A mixture of experts in its place (SPEC 20), of this activation; None for none.
        tied: Whether the logits come from the embedding's weight instead of a head of its own.
        head_bias: Whether a head of its own has a bias.
        embedding_scale: Factor on the embedding.
        logit_scale: Factor on the logits, before the cap.
        logit_softcap: Logits become c * tanh(logits / c); None for no cap.
        dropout: On the embedding and on each sublayer's result; attention has its own.
        max_length: The context that the model was made for; None for any.

    Raises:
        ValueError: For a number out of range or settings that contradict each other.
        TypeError: For the wrong kind of value.
    """

    attention: tuple[AttentionConfig, ...]
    feed_forward_size: int
    vocab_size: int | None = None
    input_dim: int | None = None
    output: Output = "logits"
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    norm_placement: NormPlacement = "pre"
    parallel: Parallel | None = None
    residual_scale: float = 1.0
    activation: Activation = "silu"
    gated: bool = True
    feed_forward_bias: bool = False
    experts: ExpertsConfig | None = None
    tied: bool = False
    head_bias: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    dropout: float = 0.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", tuple(self.attention))
        checks.integer("number of layers", len(self.attention), at_least=1)
        for layer in self.attention:
            checks.instance("attention", layer, AttentionConfig)
        checks.layer_widths(tuple(layer.embed_dim for layer in self.attention))
        checks.integer("feed_forward_size", self.feed_forward_size, symbol="F", at_least=1)
        checks.model_ends(self.vocab_size, self.input_dim, self.output, self.tied)
        checks.choice("output", self.output, ("logits", "last_hidden"))
        checks.choice("norm", self.norm, ("layer", "layer_plus_one", "rms", "rms_plus_one"))
        checks.choice("norm_placement", self.norm_placement, ("pre", "post", "both"))
        checks.choice("parallel", self.parallel, ("own_norms", "shared_norm"), optional=True)
        checks.parallel_norms(self.parallel, self.norm_placement)
        checks.choice("activation", self.activation, ("gelu", "gelu_tanh", "relu2", "silu"))
        for name in ("norm_bias", "gated", "feed_forward_bias", "tied", "head_bias"):
            checks.boolean(name, getattr(self, name))
        checks.instance("experts", self.experts, ExpertsConfig, optional=True)
        if self.experts is not None:
            checks.experts(self.experts, self.num_layers, self.gated)
        checks.norm_bias(self.norm, self.norm_bias)
        checks.head_bias(self.head_bias, own_head=self.output == "logits" and not self.tied)
        checks.number("norm_eps", self.norm_eps, at_least=0)
        for name in ("embedding_scale", "logit_scale", "residual_scale"):
            checks.number(name, getattr(self, name), above=0)
        checks.number("logit_softcap", self.logit_softcap, above=0, optional=True)
        checks.number("dropout", self.dropout, at_least=0, below=1)
        if self.max_length is not None:
            checks.integer("max_length", self.max_length, at_least=1)

    @classmethod
    def encoder(
        cls,
        *,
        embed_dim: int = 287,
        hidden_size: int = 256,
        num_heads: int = 8,
        num_kv_heads: int = 2,
        num_layers: int = 4,
        dropout: float = 0.1,
        rope: bool | RopeConfig = False,
        window_size: int | None = 60,
    ) -> ModelConfig:
        """A sequence encoder: vectors (B, T, I) in, the last position's hidden state (B, D) out.

        Args:
            embed_dim: I, the width of the vectors.
            hidden_size: D, the width of the residual stream.
            num_heads: N, the number of query heads of each layer.
            num_kv_heads: K, the number of key/value heads of each layer.
            num_layers: The number of layers.
            dropout: Of attention weights, of the embedding, and of what each sublayer adds.
            rope: Whether queries and keys are rotated, or a RopeConfig such as `RopeConfig(scaling=YarnScaling(...))`.
            window_size: How many positions a query attends to, its own included; None for all before it.
        """
        rope_config = RopeConfig() if rope is True else rope or None
        layer = AttentionConfig(
            embed_dim=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            dropout=dropout,
            causal=True,
            window=window_size,
            qkv_bias=True,
            out_bias=True,
            rope=rope_config,
        )
        return cls(
            attention=(layer,) * num_layers,
            feed_forward_size=4 * hidden_size,
            input_dim=embed_dim,
            output="last_hidden",
            norm="layer",
            norm_bias=True,
            norm_eps=1e-5,
            activation="gelu",
            gated=False,
            feed_forward_bias=True,
            dropout=dropout,
        )

    @classmethod
    def decoder(
        cls,
        *,
        vocab_size: int,
        hidden_size: int = 256,
        num_heads: int = 8,
        num_kv_heads: int = 2,
        num_layers: int = 4,
        feed_forward_size: int | None = None,
        head_dim: int = DERIVED,
        window: int | None = None,
        qk_norm: QKNorm | None = None,
        rope: bool | RopeConfig = True,
        tied: bool = True,
        dropout: float = 0.0,
        max_length: int | None = None,
    ) -> ModelConfig:
        """A causal language model as LLaMA is built: tokens (B, T) in, logits (B, T, V) out.

        Args:
            vocab_size: V, the number of tokens.
            hidden_size: D, the width of the residual stream.
            num_heads: N, the number of query heads of each layer.
            num_kv_heads: K, the number of key/value heads of each layer.
            num_layers: The number of layers.
            feed_forward_size: F; 8 / 3 of D, rounded up to a multiple of 32, by default.
            head_dim: H, the head size; D / N by default.
            window: How many positions a query attends to, its own included; None for all before it.
            qk_norm: How queries and keys are normed, None for not.
            rope: Whether queries and keys are rotated, or a RopeConfig.
            tied: Whether the logits come from the embedding's weight.
            dropout: Of attention weights, of the embedding, and of what each sublayer adds.
            max_length: The context that the model is made for; None for any.
        """
        layer = AttentionConfig(
            embed_dim=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dropout=dropout,
            causal=True,
            window=window,
            qk_norm=qk_norm,
            rope=RopeConfig() if rope is True else rope or None,
        )
        return cls(
            attention=(layer,) * num_layers,
            feed_forward_size=-(-8 * hidden_size // 96) * 32 if feed_forward_size is None else feed_forward_size,
            vocab_size=vocab_size,
            tied=tied,
            dropout=dropout,
            max_length=max_length,
        )

    def replace(self, **changes: Any) -> Self:
        """A copy with other settings.

        Raises:
            ValueError: As the constructor.
            TypeError: As the constructor.
        """
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them; equal neighbours of `attention` are written once, with their `count`."""
        runs = [(layer, len(list(same))) for layer, same in groupby(self.attention)]
        attention = [{"count": count, **layer.to_dict()} for layer, count in runs]
        experts = None if self.experts is None else self.experts.to_dict()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "attention": attention, "experts": experts}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: For anything that `to_dict` does not write.
        """
        try:
            counts = [run["count"] for run in stored["attention"]]
            good = all(isinstance(count, int) and 1 <= count <= MOST_LAYERS for count in counts)
            if not good or sum(counts) > MOST_LAYERS:
                raise ValueError(f"config: expected 1 to {MOST_LAYERS} layers in all, got counts {counts[:8]}")
            runs = [(run["count"], {n: x for n, x in run.items() if n != "count"}) for run in stored["attention"]]
            layers = [layer for count, run in runs for layer in [AttentionConfig.from_dict(run)] * count]
            given = stored.get("experts")
            experts = None if given is None else ExpertsConfig.from_dict(given)
            return cls(**{**stored, "attention": tuple(layers), "experts": experts})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"config: {type(error).__name__}: {error}") from error

    @property
    def num_layers(self) -> int:
        return len(self.attention)

    @property
    def hidden_size(self) -> int:
        """D: the width of the residual stream."""
        return self.attention[0].embed_dim

    @property
    def output_size(self) -> int:
        """The size of the last axis of what the model returns."""
        return self.vocab_size if self.output == "logits" and self.vocab_size is not None else self.hidden_size

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """The experts that a layer has in the place of its feed-forward."""
        return None if self.experts is None or layer in self.experts.dense_layers else self.experts

    def rolling(self, max_length: int) -> tuple[bool, ...]:
        """Which layers of a model have a rolling cache: those whose window is shorter than what they are to hold."""
        return tuple(layer.window is not None and layer.window < max_length for layer in self.attention)

    @property
    def param_count(self) -> int:
        """The number of parameters, equal to the sum over the model's canonical weights (a tied head counts once)."""
        return sum(prod(shape) for shape in model_weight_shapes(self).values())


def model_symbolic_shapes(config: ModelConfig) -> dict[str, str]:
    """As `symbolic_shapes`, for a whole model: V vocabulary, F feed-forward size, I input_dim; X, Fx, Fs of experts.

    The names of layer i start with `blocks.{i}.`, those of its attention with `blocks.{i}.attention.`.
    """
    tokens, before, after = (
        config.vocab_size is not None,
        config.norm_placement != "post",
        config.norm_placement != "pre",
    )
    plain = config.norm_bias
    before_feed_forward = before and config.parallel != "shared_norm"
    own_head = config.output == "logits" and not config.tied
    table = {"embed.weight": ("V, D" if tokens else "D, I", True), "embed.bias": ("D,", not tokens)}
    for i, layer in enumerate(config.attention):
        block = f"blocks.{i}."
        table |= {
            f"{block}attention_norm.weight": ("D,", before),
            f"{block}attention_norm.bias": ("D,", before and plain),
            **{f"{block}attention.{name}": (symbols, True) for name, symbols in symbolic_shapes(layer).items()},
            f"{block}attention_post_norm.weight": ("D,", after),
            f"{block}attention_post_norm.bias": ("D,", after and plain),
            f"{block}feed_forward_norm.weight": ("D,", before_feed_forward),
            f"{block}feed_forward_norm.bias": ("D,", before_feed_forward and plain),
            **{f"{block}feed_forward.{name}": (symbols, True) for name, symbols in _feed_forward(config, i).items()},
            f"{block}feed_forward_post_norm.weight": ("D,", after),
            f"{block}feed_forward_post_norm.bias": ("D,", after and plain),
        }
    table |= {
        "norm.weight": ("D,", True),
        "norm.bias": ("D,", plain),
        "head.weight": ("V, D", own_head),
        "head.bias": ("V,", own_head and config.head_bias),
    }
    return {name: symbols for name, (symbols, on) in table.items() if on}


def _feed_forward(config: ModelConfig, layer: int) -> dict[str, str]:
    """Name under `feed_forward.` -> symbolic shape."""
    experts = config.experts_of(layer)
    if experts is not None:
        return expert_shapes(experts)
    kinds = (("weight", "F, D", "D, F"), *((("bias", "F,", "D,"),) if config.feed_forward_bias else ()))
    shapes = {("gate", kind): wide for kind, wide, _ in kinds if config.gated}
    shapes |= {("up", kind): wide for kind, wide, _ in kinds} | {("down", kind): narrow for kind, _, narrow in kinds}
    return {f"{module}.{kind}": symbols for (module, kind), symbols in shapes.items()}


def model_weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """As `weight_shapes`, for a whole model."""
    ends = {"V": config.vocab_size or 0, "I": config.input_dim or 0, "F": config.feed_forward_size, "1": 1}
    ends |= {} if config.experts is None else config.experts.axes
    shapes = {}
    for name, symbols in model_symbolic_shapes(config).items():
        layer = config.attention[int(name.split(".")[1])] if name.startswith("blocks.") else config.attention[0]
        shapes[name] = sized(symbols, layer.axes | ends)
    return shapes

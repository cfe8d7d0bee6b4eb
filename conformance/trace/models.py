"""Two models side by side: the first stage of each attention layer at which they differ, and what differs around them.

Both are brought to one RoPE pairing (canonical weights have one head order already), and their stored weights are
compared bit for bit. A layer of the one then runs in one backend and its counterpart in another, on the same random
input; each stage of both is held against the float64 oracle with the bounds of SPEC 15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from conformance.cases.compare import EPSILON, bound, compare, error_of
from conformance.cases.inputs import DTYPES
from conformance.targets import Backend, TargetLayer
from conformance.trace.hints import hint
from conformance.trace.regrouped import OF_KV_HEADS, pooled, repeated, repeated_heads, unrelated
from conformance.trace.stages import STAGES
from conformance.trace.stored import compare_bits, compare_weights, directions, rope_lengths, settings_differences
from gqa_spec import AttentionConfig, ModelConfig
from gqa_spec.config import weight_shapes
from gqa_spec.model_config import model_weight_shapes
from gqa_weights.derived import shifted_norms
from gqa_weights.families import FAMILIES
from gqa_weights.heads import convert_rope_pairing

Array = np.ndarray
Weights = Mapping[str, Array]
Stages = Mapping[str, Array]
LayerWeights = tuple[AttentionConfig, Weights]
STORED = "stored weights"
TOKENS, FAR = 12, 4096
OTHER_MODEL = "not the same model"
LISTED = 3  # of a layer's weights that differ
# Settings of a model that change no number it computes; those of attention show in its stages.
NOT_COMPUTED_WITH = ("attention", "dropout", "max_length", "tied")


class Model(Protocol):
    """Canonical names -> arrays, with a ModelConfig as `config`, or with `attention` alone, its layers' settings."""

    @property
    def weights(self) -> Weights: ...


@dataclass(frozen=True)
class Verdict:
    """place: "layer 3 attention", "model", or a weight's name. stage: the first that differs, empty where all agree.
    error: at that stage, or the largest of all stages, relative to the largest value. reason: what differs, and the
    convention that explains it where one is known.
    """

    place: str
    stage: str = ""
    error: float = 0.0
    reason: str = ""

    @property
    def same(self) -> bool:
        return not self.stage


def steps(a: Model, b: Model) -> int:
    """How often `verify` will call `done`."""
    return min(len(attention_of(a)), len(attention_of(b))) + 1


def verify(
    a: Model,
    b: Model,
    *,
    backends: tuple[str, str] = ("numpy", "torch"),
    dtype: str = "float64",
    exact: bool = False,
    done: Callable[[int], None] = lambda size: None,
) -> Iterator[Verdict]:
    """Compare two models: their sizes, each attention layer, the settings and weights around attention.

    Of a layer the stored weights are compared first, bit for bit after the mapping to canonical names and one RoPE
    pairing, then its stages. A weight that the two hold in different dtypes is rounded to the narrower first: so a port
    to bfloat16 equals what it was rounded from. A norm that one side stores as 1 + w may differ by the rounding of it.

    Args:
        a: A model; its attention runs in the first of `backends`.
        b: Another; its attention runs in the second.
        backends: Two of numpy, torch, jax.
        dtype: What both compute in, "float64" or "float32".
        exact: Compare the stored weights and the settings alone; nothing is run.
        done: Called with 1 after each step, `steps(a, b)` times.

    Returns:
        One verdict for the sizes, one for each attention layer, one for the settings around attention, and one for each
        weight there that differs.
    """
    yield _sizes(a, b)
    yield from _related(a, b)
    yield from _unread(a, b)
    allowed = {**_rounding(a), **_rounding(b)}
    if attention_of(a)[0].embed_dim == attention_of(b)[0].embed_dim:  # else no input fits both
        for number in range(min(len(attention_of(a)), len(attention_of(b)))):
            sides = layer_of(a, number), layer_of(b, number)
            yield _verify_layer(number, *sides, allowed, None if exact else (backends, dtype))
            done(1)
    _module.cache_clear()  # the weights around attention are larger than a layer's, which the modules hold
    configs = [getattr(model, "config", None) for model in (a, b)]
    if isinstance(configs[0], ModelConfig) and isinstance(configs[1], ModelConfig):
        yield _settings(configs[0], configs[1])
        yield from _around((a.weights, configs[0]), (b.weights, configs[1]), allowed)
    done(1)


# --- attention -------------------------------------------------------------------------------------------------------


def _verify_layer(
    number: int, a: LayerWeights, b: LayerWeights, allowed: Mapping[str, float], run: tuple[tuple[str, str], str] | None
) -> Verdict:
    """run: the backends and the dtype of the stages, None for stored weights and settings alone."""
    place, start = f"layer {number} attention", f"blocks.{number}.attention."
    inside = {name.removeprefix(start): x for name, x in allowed.items() if name.startswith(start)}
    halves = _half(*a), _half(*b)
    (config, ours), (other, theirs) = repeated(*halves) or halves
    differing, error, noted = compare_weights(ours, theirs, inside)
    settings = settings_differences(config, other)
    said = "; ".join([*settings[:LISTED], *differing[:LISTED], *noted[:LISTED]])
    if run is None or noted or any("not finite" in sentence for sentence in differing):
        stage = STORED if differing else "settings" if settings else ""
        return Verdict(place, stage, error, said)
    found = compare_layers(number, *halves, *run, shared=other.num_kv_heads == config.num_kv_heads)
    if not found.same:
        lossy = [sentence for sentence in (pooled(*halves),) if sentence]
        return replace(found, reason="; ".join([*lossy, found.reason, *differing[:LISTED]]))
    if differing:
        return Verdict(place, STORED, error, said)
    return found


def compare_layers(
    number: int,
    a: LayerWeights,
    b: LayerWeights,
    backends: tuple[str, str],
    dtype: str,
    *,
    shared: bool = False,
) -> Verdict:
    """The first stage of two layers that differs from the float64 oracle of `a`, in the order of STAGES.

    shared: the one has the KV heads of the other, be it repeated: stages with their axis are not compared then.
    """
    place = f"layer {number} attention"
    a, b = comparable(a, b)
    oracle, plain, sides = layer_traces(a, b, backends, dtype)
    worst = 0.0
    repeats = shared and a[0].num_kv_heads != b[0].num_kv_heads
    for stage in [stage for stage in STAGES if not (repeats and stage in OF_KV_HEADS)]:
        for name, traces in sides.items():
            error, reason = compare_stage(stage, oracle, plain, traces, dtype)
            worst = max(worst, error)
            if reason:
                known = hint(stage, a, b)
                return Verdict(place, stage, error, "; ".join([f"{name}: {reason}", *known]))
    return Verdict(place, error=worst)


def comparable(a: LayerWeights, b: LayerWeights) -> tuple[LayerWeights, LayerWeights]:
    """Two layers in one RoPE pairing, weight by weight in one dtype."""
    (config, ours), (other, theirs) = (_half(*side) for side in (a, b))
    ours, theirs = _same_dtypes(ours, theirs)
    return (config, ours), (other, theirs)


def layer_traces(
    a: LayerWeights, b: LayerWeights, backends: tuple[str, str], dtype: str
) -> tuple[list[Stages], list[Stages], dict[str, list[Stages]]]:
    """All stages of two comparable layers, probe by probe: of A in float64, of A in gqa_numpy in `dtype`, and by name
    of A in its backend and of B in its own.
    """
    (config, ours), (other, theirs) = a, b
    probes = list(_probes(config, other))
    oracle = _traces("numpy", config, ours, "float64", probes)
    plain = oracle if dtype == "float64" else _traces("numpy", config, ours, dtype, probes)
    first = plain if backends[0] == "numpy" else _traces(backends[0], config, ours, dtype, probes)
    second = _traces(backends[1], other, theirs, dtype, probes)
    return oracle, plain, {f"A in gqa_{backends[0]}": first, f"B in gqa_{backends[1]}": second}


def compare_stage(
    stage: str, oracle: list[Stages], plain: list[Stages], traces: list[Stages], dtype: str
) -> tuple[float, str]:
    """The largest error of a stage over the probes, and why it is too large, if it is."""
    worst = 0.0
    for expected, rounded, got in zip(oracle, plain, traces, strict=True):
        if stage not in expected and stage not in got:
            continue
        if stage not in got or stage not in expected:
            return np.inf, "A has this stage, B has not" if stage in expected else "B has this stage, A has not"
        reference, own, array = (_visible(stage, expected, x) for x in (expected, rounded, got))
        found = compare(array, reference, dtype, bound(dtype, error_of(own, reference)))
        if found.reason:
            error = error_of(array, reference) if array.shape == reference.shape else np.inf
            return error, found.reason
        worst = max(worst, error_of(array, reference))
    return worst, ""


def _visible(stage: str, oracle: Stages, trace: Stages) -> Array:
    """Scores count only where a query sees the key (SPEC 6)."""
    array = trace[stage]
    if stage not in ("scores", "capped") or array.shape != oracle["masked"].shape:
        return array
    return np.where(np.isneginf(oracle["masked"]), array.dtype.type(0), array)


@dataclass(frozen=True)
class Probe:
    """One call: a row of the batch for each offset."""

    offsets: tuple[int, ...]
    rope_length: int | None


def _probes(*configs: AttentionConfig) -> Iterator[Probe]:
    """Offsets put a few tokens where conventions differ: at the start, across the edge of each window or chunk, and
    far out. Frequencies that depend on the length are taken for short and for long.
    """
    offsets = {0, FAR}
    offsets |= {config.window - 1 for config in configs if config.window is not None}
    offsets |= {config.chunk - TOKENS // 2 for config in configs if config.chunk is not None}
    lengths: set[int | None] = {None}
    for config in configs:
        if config.rope is not None and len(rope_lengths(config.rope)) > 1:
            lengths |= rope_lengths(config.rope)
    for length in sorted(lengths, key=lambda x: x or 0):
        yield Probe(tuple(sorted(offsets)), length)


def _traces(backend: str, config: AttentionConfig, weights: Weights, dtype: str, probes: list[Probe]) -> list[Stages]:
    """Each probe's stages, on numbers that depend on the sizes alone: the same for both sides."""
    with precision(backend, dtype):
        layer = _module(backend, config, dtype)
        layer.load({name: x.astype(DTYPES[dtype], copy=False) for name, x in weights.items()})
        found: list[Stages] = []
        for probe in probes:
            shape = (len(probe.offsets), TOKENS, config.embed_dim)
            # Rounded to float32 first, so that it is the same number in every dtype.
            query = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(DTYPES[dtype])
            to, back = layer.framework.to, layer.framework.back
            stages = layer.module.trace(to(query), offset=to(np.array(probe.offsets)), rope_length=probe.rope_length)
            found.append({name: back(x) for name, x in stages.items()})
        return found


@lru_cache(maxsize=3)  # the oracle and two backends, of one config: a module holds a layer's weights
def _module(backend: str, config: AttentionConfig, dtype: str) -> TargetLayer:
    """Layers of one config share a module: a new one would have to be compiled anew."""
    return Backend(backend).layer(config, dtype)


def precision(backend: str, dtype: str) -> AbstractContextManager[Any]:
    """In which a backend has that dtype."""
    if backend != "jax":
        return nullcontext()
    import jax

    return jax.enable_x64(dtype == "float64")


def layer_of(model: Model, number: int) -> tuple[AttentionConfig, Weights]:
    config = attention_of(model)[number]
    return config, {name: model.weights[f"blocks.{number}.attention.{name}"] for name in weight_shapes(config)}


def attention_of(model: Any) -> tuple[AttentionConfig, ...]:
    layers: tuple[AttentionConfig, ...] = getattr(model, "config", model).attention
    return layers


def _half(config: AttentionConfig, weights: Weights) -> tuple[AttentionConfig, Weights]:
    if config.rope is None:
        return config, weights
    weights, config = convert_rope_pairing(weights, config, "half")
    return config, weights


def _same_dtypes(ours: Weights, theirs: Weights) -> tuple[Weights, Weights]:
    pairs = {name: _same_dtype(ours[name], theirs[name]) for name in ours if name in theirs}
    return ({**ours, **{n: a for n, (a, _) in pairs.items()}}, {**theirs, **{n: b for n, (_, b) in pairs.items()}})


def _same_dtype(a: Array, b: Array) -> tuple[Array, Array]:
    """Both in the narrower dtype; of bfloat16 and float16, which hold other values each, in the one that is rounded."""
    if a.dtype == b.dtype:
        return a, b
    narrower = directions(a, b)[0]
    if len(directions(a, b)) > 1 and compare_bits(b.astype(a.dtype), a).count == 0:
        narrower = a.dtype
    return a.astype(narrower, copy=False), b.astype(narrower, copy=False)


def _rounding(model: Model) -> dict[str, float]:
    """Norm weights that the model's file stores as 1 + w -> what rounding that may change."""
    family = FAMILIES.get(getattr(model, "family", ""))
    if family is None:
        return {}
    names = shifted_norms(family, attention_of(model), getattr(model, "config", None))
    dtypes = {name: model.weights.info(name).dtype for name in names}  # type: ignore[attr-defined]
    return {name: 2 * EPSILON[dtype] for name, dtype in dtypes.items() if dtype in EPSILON}


# --- around attention ------------------------------------------------------------------------------------------------


def _sizes(a: Model, b: Model) -> Verdict:
    sizes = [{"num_layers": len(layers), "embed_dim": layers[0].embed_dim} for layers in map(attention_of, (a, b))]
    found = _differing("sizes", *sizes)
    return found if found.same else replace(found, reason=f"{OTHER_MODEL}: {found.reason}")


def _related(a: Model, b: Model) -> Iterator[Verdict]:
    """What is said of the two models as a whole: that they are two, or that the one has the other's heads repeated."""
    first = _half(*layer_of(a, 0)), _half(*layer_of(b, 0))
    said = repeated_heads(*first)
    if said:
        yield Verdict("KV heads", reason=said)
    embeddings = [model.weights.get("embed.weight") for model in (a, b)]
    if embeddings[0] is not None and embeddings[1] is not None:
        pairs = (embeddings[0], embeddings[1]), (first[0][1]["v_proj.weight"], first[1][1]["v_proj.weight"])
        if all(unrelated(*pair) for pair in pairs):  # neither of which a port permutes
            said = "the embeddings and the values of layer 0 have nothing in common"
            yield Verdict("model", "weights", 1.0, f"{OTHER_MODEL}: {said}")


def _unread(a: Model, b: Model) -> Iterator[Verdict]:
    """The tensors of the two files that are no weights of the models, by name and with the reason."""
    sides = {side: getattr(model, "unread", {}) for side, model in (("A", a), ("B", b))}
    listed = [f"{side}: {name} {why}" for side, unread in sides.items() for name, why in unread.items()]
    if listed:
        yield Verdict("tensors not compared", reason="; ".join(listed))


def _settings(a: ModelConfig, b: ModelConfig) -> Verdict:
    """Settings around attention that change what a model computes; those of attention show in its stages."""
    names = [field.name for field in fields(a) if field.name not in NOT_COMPUTED_WITH]
    return _differing("settings", *({name: getattr(config, name) for name in names} for config in (a, b)))


def _differing(place: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Verdict:
    names = [name for name in a if a[name] != b[name]]
    reason = ", ".join(f"{name} {a[name]!r} in A, {b[name]!r} in B" for name in names)
    return Verdict(place, next(iter(names), ""), 0.0, reason)


def _around(
    a: tuple[Weights, ModelConfig], b: tuple[Weights, ModelConfig], allowed: Mapping[str, float]
) -> Iterator[Verdict]:
    """Every weight outside attention that is missing on one side, differs in a bit, or is not finite."""
    shapes = [model_weight_shapes(config) for _, config in (a, b)]
    for name in dict.fromkeys([*shapes[0], *shapes[1]]):
        if ".attention." in name:
            continue
        stored = [_stored_as(name, config, shape) for (_, config), shape in zip((a, b), shapes, strict=True)]
        if stored[0] is None or stored[1] is None:
            yield Verdict(name, "weight", np.inf, f"only {'A' if stored[1] is None else 'B'} has it")
            continue
        # Named by no variable: both would be in memory while the next two are read.
        differing, error, noted = compare_weights(
            {"": a[0][stored[0]]}, {"": b[0][stored[1]]}, {"": allowed.get(name, 0.0)}
        )
        if differing or noted:
            said = "; ".join([*differing, *noted]).removeprefix(": ")
            yield Verdict(name, "weight" if differing else "", error, said)


def _stored_as(name: str, config: ModelConfig, shapes: Mapping[str, Any]) -> str | None:
    """The canonical weight in the place of `name`: a tied head is the embedding."""
    if name in shapes:
        return name
    return "embed.weight" if name == "head.weight" and config.tied else None

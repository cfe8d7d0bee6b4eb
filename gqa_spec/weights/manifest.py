"""The small file beside a port that states every convention of the result: `gqa_manifest.json`.

`config` holds the whole ModelConfig, so that what a port wrote can be read without knowing the family it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import groupby
from typing import Any

from gqa_spec.config import (
    AttentionConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeConfig,
    YarnScaling,
)
from gqa_spec.model_config import ModelConfig

Json = dict[str, Any]
SCALINGS: dict[str, type] = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
    "longrope": LongropeScaling,
}
MOST_LAYERS = 10_000  # a lying file must not fill the memory
HEAD_ORDER = "query head n reads KV head n // G"
NORM_FORMS = {
    "rms": "RMS of each head, times w, stored as w",
    "rms_plus_one": "RMS of each head, times 1 + w, stored as w",
    "rms_full": "RMS over all heads, times w, stored as w",
    None: None,
}


def manifest(
    config: ModelConfig,
    *,
    layout: str,
    prefix: str,
    pairing: str | None,
    fused: Iterable[str],
    exceptions: Mapping[str, str],
    dtypes: Iterable[str],
    source: Mapping[str, str],
) -> Json:
    """Every convention of a checkpoint, as JSON.

    layout: its name. prefix: what stands before an attention tensor's name in layer i. pairing: that of the stored
    rows, None for the config's. fused: the tensors that hold several projections, each described. exceptions: what the
    layout stores otherwise than the table below says. source: where the weights came from.
    """
    layers = [_conventions(layer, pairing, tuple(fused)) for layer in config.attention]
    numbered = [(i, layer) for i, layer in enumerate(layers)]
    return {
        "layout": layout,
        "attention_prefix": prefix,
        "dtype": ", ".join(sorted(set(dtypes))),
        "source": dict(source),
        "exceptions": dict(exceptions),
        "attention": [{"layers": [i for i, _ in same], **conventions} for conventions, same in _grouped(numbered)],
        "config": to_json(config),
    }


def _grouped(numbered: list[tuple[int, Json]]) -> list[tuple[Json, list[tuple[int, Json]]]]:
    """Layers of the same conventions together, in the order of the first of each kind."""
    kinds: list[Json] = []
    for _, layer in numbered:
        if layer not in kinds:
            kinds.append(layer)
    ordered = sorted(numbered, key=lambda pair: kinds.index(pair[1]))
    return [(kinds[number], list(same)) for number, same in groupby(ordered, key=lambda pair: kinds.index(pair[1]))]


def _conventions(layer: AttentionConfig, pairing: str | None, fused: tuple[str, ...]) -> Json:
    """What traps whoever reads weights without it (SPEC 1, 2, 4, 8, 10, 11)."""
    return {
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "v_head_dim": layer.v_head_dim,
        "head_order": HEAD_ORDER,
        "fused": list(fused) or "q, k, v and o apart",
        "pairing": None if layer.rope is None else pairing or layer.rope.pairing,
        "rope": _plain(layer.rope),
        "scale": layer.head_dim**-0.5 if layer.scale is None else layer.scale,
        "softcap": layer.softcap,
        "causal": layer.causal,
        "window": layer.window,
        "window_counts": None if layer.window is None else "the query's own position too",
        "chunk": layer.chunk,
        "sinks": layer.sinks,
        "norm": NORM_FORMS[layer.qk_norm],
        "norm_eps": layer.qk_norm_eps if layer.qk_norm else None,
    }


def to_json(config: ModelConfig) -> Json:
    """Equal neighbours of `attention` are written once, with their `count`."""
    runs = [(layer, len(list(same))) for layer, same in groupby(config.attention)]
    attention = [{"count": count, **_plain(layer)} for layer, count in runs]
    return {**{f.name: getattr(config, f.name) for f in fields(config)}, "attention": attention}


def from_json(stored: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `to_json`. Raises ValueError for anything else."""
    try:
        if sum(run["count"] for run in stored["attention"]) > MOST_LAYERS:
            raise ValueError(f"config: expected at most {MOST_LAYERS} layers")
        layers = [layer for run in stored["attention"] for layer in [_layer(run)] * run["count"]]
        return ModelConfig(**{**stored, "attention": tuple(layers)})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config: {type(error).__name__}: {error}") from error


def _layer(run: Mapping[str, Any]) -> AttentionConfig:
    settings = {name: value for name, value in run.items() if name != "count"}
    rope = settings.get("rope")
    return AttentionConfig(**{**settings, "rope": None if rope is None else _rope(rope)})


def _rope(stored: Mapping[str, Any]) -> RopeConfig:
    scaling = stored.get("scaling")
    if scaling is None:
        return RopeConfig(**stored)
    kind = SCALINGS[scaling["type"]]
    return RopeConfig(**{**stored, "scaling": kind(**{n: x for n, x in scaling.items() if n != "type"})})


def _plain(config: Any) -> Any:
    """A config's fields as JSON has them; a scaling says which it is."""
    if not is_dataclass(config) or isinstance(config, type):
        return config
    names = {kind: name for name, kind in SCALINGS.items()}
    named = {"type": names[type(config)]} if type(config) in names else {}
    return named | {f.name: _plain(getattr(config, f.name)) for f in fields(config)}

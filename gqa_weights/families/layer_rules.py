"""Rules of config.json for what differs from layer to layer: which have a window, and which rotate.

A record names its rules. A rule takes the settings and the number of layers, and gives one boolean for each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gqa_weights.families.settings import Settings

LAYER_TYPES = ("full_attention", "sliding_attention")

LayerRule = Callable[[Settings, int], list[bool]]


def no_layer(settings: Settings, layers: int) -> list[bool]:
    return [False] * layers


def every_layer(settings: Settings, layers: int) -> list[bool]:
    return [True] * layers


def where_sliding_window(settings: Settings, layers: int) -> list[bool]:
    """All layers have the window, where there is one."""
    return [settings.get("sliding_window") is not None] * layers


def all_if_used(settings: Settings, layers: int) -> list[bool]:
    """All layers have the window, where `use_sliding_window` turns it on."""
    return [settings.flag("use_sliding_window") and settings.get("sliding_window") is not None] * layers


def layer_types(settings: Settings, layers: int, *, otherwise: LayerRule, superseded: tuple[str, ...]) -> list[bool]:
    """The windows of the list `layer_types`, and of files that are older than it.

    otherwise: the rule of those files. superseded: keys of that rule, which say nothing beside a list.
    """
    switched_off = settings.reads("use_sliding_window") and not settings.flag("use_sliding_window")
    settings.skip(*superseded)
    if settings.get("layer_types") is not None:
        slides = [kind == "sliding_attention" for kind in settings.list_of("layer_types", LAYER_TYPES, layers)]
        if switched_off and any(slides):
            raise settings.unsupported("layer_types", ": sliding_attention with use_sliding_window false")
        return slides
    if switched_off or settings.get("sliding_window") is None:
        return no_layer(settings, layers)
    return otherwise(settings, layers)


def from_max_window_layers(settings: Settings, layers: int) -> list[bool]:
    full = settings.get("max_window_layers")
    if not isinstance(full, int):
        raise settings.wrong("max_window_layers", "an integer")
    return [layer >= full for layer in range(layers)]


def each_second_of_the_first(settings: Settings, layers: int) -> list[bool]:
    """Layers 0, 2, 4, ... below `max_window_layers`."""
    below = [not slides for slides in from_max_window_layers(settings, layers)]
    return [windowed and layer % 2 == 0 for layer, windowed in enumerate(below)]


def all_but_each(settings: Settings, layers: int, *, every: int) -> list[bool]:
    return [(layer + 1) % every != 0 for layer in range(layers)]


def all_but_each_of_pattern(settings: Settings, layers: int) -> list[bool]:
    return all_but_each(settings, layers, every=settings.integer("sliding_window_pattern"))


def no_rope_layers(settings: Settings, layers: int) -> list[bool]:
    """Which layers rotate, by SmolLM3's list, in which 1 means that the layer has RoPE."""
    settings.skip("no_rope_layer_interval")
    if settings.get("no_rope_layers") is not None:
        return [bool(entry) for entry in settings.list_of("no_rope_layers", (0, 1), layers)]
    return all_but_each(settings, layers, every=settings.integer("no_rope_layer_interval"))


def not_rotating(settings: Settings, layers: int) -> list[bool]:
    return [not rotates for rotates in no_rope_layers(settings, layers)]


def where_window(settings: Settings, layers: int, *, windows: LayerRule) -> list[bool]:
    """Which layers rotate: those with a window, or all where none has one."""
    return windows(settings, layers) if settings.get("sliding_window") is not None else every_layer(settings, layers)


def full_attention_layers(settings: Settings, layers: int) -> list[bool]:
    """Which layers have attention, where the others are `linear_attention`, of which we have no maths."""
    settings.skip("full_attention_interval")
    if settings.get("layer_types") is not None:
        allowed = ("full_attention", "linear_attention")
        return [kind == "full_attention" for kind in settings.list_of("layer_types", allowed, layers)]
    every = settings.integer("full_attention_interval")
    return [(layer + 1) % every == 0 for layer in range(layers)]


QWEN_WINDOWS: LayerRule = partial(layer_types, otherwise=from_max_window_layers, superseded=("max_window_layers",))
QWEN2_MOE_WINDOWS: LayerRule = partial(
    layer_types, otherwise=each_second_of_the_first, superseded=("max_window_layers",)
)
GEMMA2_WINDOWS: LayerRule = partial(layer_types, otherwise=partial(all_but_each, every=2), superseded=())
GEMMA3_WINDOWS: LayerRule = partial(
    layer_types, otherwise=all_but_each_of_pattern, superseded=("sliding_window_pattern",)
)
EACH_FOURTH_FULL: LayerRule = partial(layer_types, otherwise=partial(all_but_each, every=4), superseded=())
ALL_WINDOWS: LayerRule = partial(layer_types, otherwise=every_layer, superseded=())
SMOLLM3_WINDOWS: LayerRule = partial(layer_types, otherwise=not_rotating, superseded=("no_rope_layer_interval",))

"""What a user's class or function always does, and cannot be told not to: found by a first call, and judged with it.

A layer without a parameter `rope` that rotates, or without `causal` that hides the future, is judged as what it is. A
dtype that it raises in is one that it does not take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import gqa_numpy
from conformance.cases import inputs
from conformance.cases.compare import error_of
from conformance.cases.inputs import DTYPES, Call
from conformance.cases.table import FEATURE, Case
from conformance.targets.callables import TargetClass, TargetFunction
from conformance.targets.frameworks import set_x64
from conformance.targets.limits import Limits
from conformance.targets.protocol import ChangedInputs, NotATarget, WrongType
from conformance.targets.weights import recognised
from gqa_spec import AttentionConfig, RopeConfig

Target = TargetFunction | TargetClass
TRIED = ("float64", "float32"), ("bfloat16", "float16")
CLOSE = 2e-2  # of the largest value: within it in 16 bit, and far outside with another rule
THETAS = (1e4, 1e5, 5e5, 1e6)


def recognise(target: Target) -> Target:
    """The target with the limits that its signature, its parameters and a first call show.

    Raises:
        NotATarget: where it can neither be built nor called.
    """
    if isinstance(target, TargetClass):
        target = replace(target, limits=_signed(target))
    raised: dict[str, str] = {}
    worked: list[str] = []
    for dtypes in (target.limits.dtypes,) if target.limits.dtypes else TRIED:
        for dtype in dtypes:
            try:
                target = _tried(target, dtype) if not worked else _again(target, dtype)
                worked.append(dtype)
            except (ChangedInputs, WrongType):  # it runs, and is judged
                worked.append(dtype)
            except Exception as error:
                raised[dtype] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        if worked:
            break
    if not worked:
        reason = next(iter(raised.values())).removeprefix("NotATarget: ")
        raise NotATarget(f"target {target.name}: cannot be {_stage(target)}: {reason}")
    refused = tuple(f"takes no {dtype}: it raises {raised[dtype]}" for dtype in raised if dtype in TRIED[0])
    if target.limits.dtypes is None and tuple(worked) != TRIED[0]:
        target = replace(target, limits=replace(target.limits, dtypes=tuple(worked)))
    return replace(target, notes=(*target.notes, *refused))


def _stage(target: Target) -> str:
    return "built or called" if isinstance(target, TargetClass) else "called"


def _signed(target: TargetClass) -> Limits:
    """What the signatures of the class and of its call leave out."""
    limits, takes = target.limits, target.binding.takes
    if limits.settings is not None:
        return limits
    called = target.call_binding
    return replace(
        limits,
        wide=limits.wide and takes("head_dim"),
        value_size=limits.value_size and takes("v_head_dim"),
        grouped=limits.grouped and takes("num_kv_heads"),
        kv_width=limits.kv_width and takes("kv_dim"),
        cross=limits.cross and (called is None or called.takes("key")),
    )


def _case(target: Target) -> Case:
    """A small case that shows RoPE, causal masks and norms, and no order of heads."""
    H = target.limits.head_size(8)
    config = AttentionConfig(embed_dim=3 * H, num_heads=3, num_kv_heads=3, head_dim=H)
    return Case("first call", "first call", FEATURE["square"], config, 2, 5, 5)


def _again(target: Target, dtype: str) -> Target:
    """In another dtype, with what is known."""
    set_x64(dtype != "float32")
    case = _case(target)
    if isinstance(target, TargetFunction):
        target(_kernel_call(case, dtype))
        return target
    config = replace(case.config, **target.limits.always)
    _output(target, config, dtype, inputs.weights(replace(case, config=config), dtype), inputs.layer_call(case, dtype))
    return target


def _tried(target: Target, dtype: str) -> Target:
    """The first call that works; of a class also what it always does."""
    if isinstance(target, TargetFunction):
        return _again(target, dtype)
    set_x64(dtype != "float32")
    case = _case(target)
    target, settings = _parameters(target, case.config, dtype)
    call, config = inputs.layer_call(case, dtype), replace(case.config, **settings)
    weights = inputs.weights(replace(case, config=config), dtype)
    shown = replace(target, limits=replace(target.limits, always=settings))
    got = _output(shown, config, dtype, weights, call)
    errors = [(_error(got, replace(config, **more), weights, call), more) for more in _candidates(target, settings)]
    least, more = min(errors, key=lambda pair: pair[0])  # the first of equals, which has the fewest settings
    settings = settings | more if least < CLOSE else settings
    always = {n: x for n, x in settings.items() if not target.binding.takes(n)} | dict(target.limits.always)
    said = tuple(_sentence(name, setting) for name, setting in always.items() if name not in target.limits.always)
    return replace(target, limits=replace(target.limits, always=always), notes=(*target.notes, *said))


def _parameters(target: TargetClass, config: AttentionConfig, dtype: str) -> tuple[TargetClass, dict[str, Any]]:
    """The layout of its weights, and the settings that its parameters show."""
    known = dict(target.limits.always)
    module = target.layer(replace(config, **known), dtype).module
    if not hasattr(module, "named_parameters") or hasattr(module, "load_weights"):
        return target, known
    found = recognised(module, replace(config, **known), target.limits.weights)
    if found is None:
        return target, known
    layout, settings = found
    if layout and not target.limits.weights:
        note = (f"its weights are stored as {layout}",)
        target = replace(target, limits=replace(target.limits, weights=layout), notes=(*target.notes, *note))
    return target, known | settings


def _candidates(target: TargetClass, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Nothing more, then what the class has no parameter for."""
    open_to = {name for name in ("causal", "rope") if not target.binding.takes(name) and name not in settings}
    norms = [{}, {"qk_norm": "rms_plus_one"}] if settings.get("qk_norm") == "rms" else [{}]
    ropes: list[dict[str, Any]] = [{}]
    if "rope" in open_to:
        pairings = ("half", "interleaved")
        ropes += [{"rope": RopeConfig(theta=theta, pairing=p)} for theta in THETAS for p in pairings]  # type: ignore[arg-type]
    for norm in norms:
        for rope in ropes:
            for causal in ({}, {"causal": True}) if "causal" in open_to else ({},):
                yield norm | rope | causal


def _output(target: TargetClass, config: AttentionConfig, dtype: str, weights: Any, call: Call) -> Any:
    layer = target.layer(config, dtype)
    layer.load(weights)
    return layer(call)[0]


def _error(got: Any, config: AttentionConfig, weights: Any, call: Call) -> float:
    layer = gqa_numpy.GroupedQueryAttention.from_config(config, dtype=np.dtype(np.float64)).eval()
    layer.load_weights({name: x.astype(np.float64) for name, x in weights.items()})
    expected = layer(call.query.astype(np.float64))[0]
    return error_of(got, expected) if got.shape == expected.shape else np.inf


def _kernel_call(case: Case, dtype: str) -> Call:
    """Of one head size: what only a larger value shows is judged later."""
    rng, H = np.random.default_rng(0), case.config.head_dim
    query, key, value = (rng.normal(size=(2, 3, 5, H)).astype(DTYPES[dtype]) for _ in range(3))
    return Call(query, key, value, None, {})


def _sentence(name: str, setting: Any) -> str:
    if isinstance(setting, RopeConfig):
        return f"applies RoPE itself: {setting.pairing}, theta {setting.theta:g}"
    return "always causal" if name == "causal" else f"always has {name} = {setting!r}"

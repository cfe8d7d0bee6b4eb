"""A user's class or function as a target.

A class is built with `embed_dim, num_heads, num_kv_heads` and those further fields of `AttentionConfig` that a case
needs, takes canonical weights by `load_weights(mapping)` or `load_state_dict`, and is called as
`layer(query, key, value, mask)`. A function is called as `attention(query, key, value, mask, causal=...)`. Parameters
may have other names (`binding`), and only those that there are get an argument. What a case needs and the target does
not take makes the case unsupported for it, which is never counted as passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from conformance.cases.inputs import Call
from conformance.targets.binding import NAMES, OF_CALL, OF_CONSTRUCTOR, Binding, binding
from conformance.targets.frameworks import Framework
from conformance.targets.limits import Limits
from conformance.targets.protocol import ChangedInputs, Unsupported, WrongType
from conformance.targets.weights import load
from gqa_spec import AttentionConfig

Array = np.ndarray
SIZES = ("embed_dim", "num_heads", "num_kv_heads")
DIFFERENTIATED = (*NAMES, "sinks")


@dataclass(frozen=True)
class TargetLayer:
    """A layer of one framework under test."""

    framework: Framework
    module: Any
    limits: Limits = field(default_factory=Limits)
    config: AttentionConfig | None = None

    @cached_property
    def binding(self) -> Binding:
        return binding(getattr(self.module, "forward", self.module.__call__), OF_CALL, NAMES)

    def load(self, weights: dict[str, Array]) -> None:
        load(self.module, weights, self.framework, self.limits.weights, self.config)

    def __call__(self, call: Call) -> tuple[Array, Array | None]:
        given = _given(call, self.framework, self.limits)
        args, keywords = self.binding.arguments(given)
        result = self.framework.call(self.module, *args, **keywords)
        _refuse_changes(call, given, self.framework)
        return _output_and_weights(result, self.framework)

    def gradients(self, call: Call, d_output: Array) -> dict[str, Array]:
        """Those of `DIFFERENTIATED` that the call gives, by the gradient of the output."""
        return _gradients(self.framework.pure(self.module), self.binding, call, d_output, self.framework, self.limits)

    def caching(
        self, batch_size: int, max_length: int, *, rolling: bool, ends: bool
    ) -> Callable[[Array, Array | None], Array]:
        """A cache of its own: tokens (B, T, D), and how many of each row are real unless all are -> their output.

        ends: one that holds max_length tokens and no more.
        """
        make, extend = (getattr(self.module, name, None) for name in ("init_cache", "extend"))
        if make is None or extend is None:
            raise Unsupported("has no init_cache and extend")
        order = ("batch_size", "max_length")
        takes = binding(make, {}, order)
        if not takes.takes("max_length") and ends:
            raise Unsupported("grows as it is filled")
        if rolling and not (takes.anything or "rolling" in takes.named):
            raise Unsupported("takes no rolling")
        grows = not takes.takes("max_length")
        kind = {"rolling": True} if rolling else {}
        cache = make(batch_size, **kind) if grows else make(batch_size, max_length, **kind)
        counts = binding(extend, {}, ("x", "cache"))

        def extended(x: Array, lengths: Array | None) -> Array:
            nonlocal cache
            if lengths is not None and not counts.takes("lengths"):
                raise Unsupported("takes no lengths")
            counted = {} if lengths is None else {"lengths": self.framework.to(lengths)}
            output, cache = extend(self.framework.to(x), cache, **counted)
            return _back(output, self.framework)

        return extended


@dataclass(frozen=True)
class TargetFunction:
    """A user's function. kind: what its call is: "function", or "packed" or "paged" (`sequences`)."""

    name: str
    framework: Framework
    function: Any
    limits: Limits = field(default_factory=Limits)
    notes: tuple[str, ...] = ()
    kind: str = "function"

    @cached_property
    def binding(self) -> Binding:
        return binding(self.function, OF_CALL, NAMES)

    def __call__(self, call: Call) -> tuple[Array, Array | None]:
        context, weights = answered(self, call)
        return _axes(context, self.limits), weights

    def gradients(self, call: Call, d_output: Array) -> dict[str, Array]:
        """As a layer's."""
        return gradients_of(self, call, d_output)


def answered(target: TargetFunction, call: Call) -> tuple[Array, Array | None]:
    """What a function returns for arrays of its own layout: the context, and weights where it returns some."""
    given = _given(call, target.framework, target.limits)
    args, keywords = target.binding.arguments(given)
    result = target.framework.apply(target.function, *args, **keywords)
    _refuse_changes(call, given, target.framework, target.limits)
    return _output_and_weights(result, target.framework)


def gradients_of(target: TargetFunction, call: Call, d_output: Array) -> dict[str, Array]:
    """Those of `DIFFERENTIATED` that the call gives, by the gradient of the output."""
    return _gradients(target.function, target.binding, call, d_output, target.framework, target.limits)


@dataclass(frozen=True)
class TargetClass:
    """A user's class, or a function that makes a layer. options: keywords with which it is always built."""

    name: str
    framework: Framework
    cls: Any
    limits: Limits = field(default_factory=Limits)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()
    kind: str = field(default="class", init=False)

    @cached_property
    def binding(self) -> Binding:
        return binding(self.cls, OF_CONSTRUCTOR, SIZES)

    @property
    def call_binding(self) -> Binding | None:
        """Of its instances' call, where the class shows it."""
        kinds = self.cls.__mro__ if isinstance(self.cls, type) else ()
        own = [vars(kind)[name] for name in ("forward", "__call__") for kind in kinds if name in vars(kind)]
        return binding(own[0].__get__(object()), OF_CALL, NAMES) if own else None

    def layer(self, config: AttentionConfig, dtype: str) -> TargetLayer:
        needed = self._needed(config)
        options = {n: x for n, x in self.framework.options(dtype).items() if self.binding.takes(n)}
        settings = self.limits.settings
        missing = [n for n in needed if settings is not None and n not in (*SIZES, *settings)]
        if missing:
            raise Unsupported(f"takes no {', '.join(missing)}")
        needed = {n: x for n, x in needed.items() if n not in self._always or self.binding.takes(n)}
        if not self.binding.takes("num_kv_heads") and config.num_kv_heads == config.num_heads:
            del needed["num_kv_heads"]
        bound = _without(self.binding, tuple(self.options))
        args, keywords = bound.arguments(needed | options)
        module = self.cls(*args, **keywords, **self.options)
        if self.framework.name == "torch" and hasattr(module, "to"):
            module = module.to(**self.framework.options(dtype))
        module = module.eval() or module if hasattr(module, "eval") else module
        return TargetLayer(self.framework, module, self.limits, config)

    @property
    def _always(self) -> frozenset[str]:
        return frozenset(self.limits.always)

    def _needed(self, config: AttentionConfig) -> dict[str, Any]:
        """The sizes, and the fields that are not at their defaults."""
        derived: dict[str, Any] = {"num_kv_heads": None, "kv_dim": config.embed_dim, "v_head_dim": config.head_dim}
        derived["head_dim"] = config.embed_dim / config.num_heads
        defaults = {f.name: f.default for f in fields(config)} | derived
        return {name: getattr(config, name) for name in defaults if getattr(config, name) != defaults[name]}


def _without(bound: Binding, options: tuple[str, ...]) -> Binding:
    """Without the parameters that are always given."""
    if not options:
        return bound
    return Binding(
        tuple(role for role in bound.positional if role not in options),
        bound.named,
        bound.anything,
        tuple(role for role in bound.needed if role not in options),
        tuple(name for name in bound.unknown if name not in options),
    )


def arguments(call: Call) -> dict[str, Any]:
    """All that a call gives, by name."""
    return dict(zip(NAMES, call.arguments, strict=True)) | call.keywords


def differentiated(call: Call) -> list[str]:
    """The arguments of a call that have gradients: its floating arrays."""
    given = arguments(call)
    return [n for n in DIFFERENTIATED if isinstance(given.get(n), Array) and _is_floating(given[n])]


def _is_floating(x: Array) -> bool:
    return x.dtype.kind not in "biu"  # bfloat16 is of kind V


def _gradients(
    function: Any, bound: Binding, call: Call, d_output: Array, framework: Framework, limits: Limits
) -> dict[str, Array]:
    assert framework.vjp is not None
    given = _given(call, framework, limits)

    def output(leaves: dict[str, Any]) -> Any:
        args, keywords = bound.arguments(given | leaves)
        result = function(*args, **keywords)
        return result[0] if isinstance(result, tuple) else result

    d_result = framework.to(_axes(d_output, limits) if d_output.ndim == 4 else d_output)
    found = framework.vjp(output, {name: given[name] for name in differentiated(call)}, d_result)
    return {name: _own_axes(name, _back(x, framework), limits) for name, x in found.items()}


def _axes(x: Array, limits: Limits) -> Array:
    """From the target's order of axes to ours, or back."""
    return x.swapaxes(1, 2) if limits.layout == "BTNH" and x.ndim == 4 else x


def _own_axes(name: str, x: Array, limits: Limits) -> Array:
    return _axes(x, limits) if name in NAMES[:3] else x


def _given(call: Call, framework: Framework, limits: Limits) -> dict[str, Any]:
    """The call in the framework's arrays: copies, so that a target that writes into them is found out."""
    if call.mask is not None and not limits.takes_mask(call.mask.dtype == bool):
        raise Unsupported(f"takes no {'boolean' if call.mask.dtype == bool else 'floating'} mask")
    to = _copied if framework.name == "numpy" else framework.to
    full = dict(zip(NAMES, call.arguments, strict=True)) | call.keywords
    return {n: to(_own_axes(n, x, limits) if isinstance(x, Array) else x) for n, x in full.items() if x is not None}


def _copied(x: Any) -> Any:
    return x.copy() if isinstance(x, Array) else x


def _refuse_changes(call: Call, given: dict[str, Any], framework: Framework, limits: Limits | None = None) -> None:
    before = dict(zip(NAMES, call.arguments, strict=True)) | call.keywords
    for name, after in given.items():
        x = before[name]
        if isinstance(x, Array):
            back = _own_axes(name, framework.back(after), limits or Limits())
            if back.astype(x.dtype).tobytes() != x.tobytes():  # JAX: int32
                raise ChangedInputs(f"changes its input {name}")


def _output_and_weights(result: Any, framework: Framework) -> tuple[Array, Array | None]:
    """The first of what is returned, and the second where it is an array of weights."""
    if not isinstance(result, tuple) or not result:
        return _back(result, framework), None
    second = result[1] if len(result) > 1 else None
    weights = None if second is None or not hasattr(second, "ndim") or second.ndim < 3 else _back(second, framework)
    return _back(result[0], framework), weights


def _back(x: Any, framework: Framework) -> Array:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise WrongType(f"returned {type(x).__name__}, expected an array of {framework.name}")
    try:
        return framework.back(x)
    except Exception as error:
        raise WrongType(f"returned {type(x).__module__}.{type(x).__name__}, no array of {framework.name}") from error

"""A user's class or function as a target.

A class is built with `embed_dim, num_heads, num_kv_heads` and those further fields of `AttentionConfig` that a case
needs, takes canonical weights by `load_weights(mapping)` or `load_state_dict`, and is called as
`layer(query, key, value, mask)`. A function is called as `attention(query, key, value, mask, causal=...)`. A keyword
that a case needs and the target does not take makes the case "unsupported" for it, which is never counted as passed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from conformance.cases.inputs import Call
from conformance.targets.frameworks import Framework
from conformance.targets.protocol import Limits, NotATarget, Unsupported
from gqa_spec import AttentionConfig

Array = np.ndarray


@dataclass(frozen=True)
class TargetLayer:
    """A layer of one framework under test."""

    framework: Framework
    module: Any
    accepted: frozenset[str] | None = None

    def load(self, weights: dict[str, Array]) -> None:
        if hasattr(self.module, "load_weights"):
            self.module.load_weights(weights)
        elif hasattr(self.module, "load_state_dict"):
            self.module.load_state_dict({name: self.framework.to(x) for name, x in weights.items()})
        else:
            raise NotATarget("the class has neither load_weights(mapping) nor load_state_dict(mapping)")

    def __call__(self, call: Call) -> tuple[Array, Array | None]:
        _refuse(call.keywords, self.accepted)
        arguments, keywords = _given(call, self.framework)
        result = self.framework.call(self.module, *arguments, **keywords)
        _unchanged(call, arguments, keywords, self.framework)
        return _output_and_weights(result, self.framework)

    def gradients(self, call: Call, d_output: Array) -> dict[str, Array]:
        """Those of `DIFFERENTIATED` that the call gives, by the gradient of the output."""
        return _gradients(self.framework.pure(self.module), call, d_output, self.framework)

    def caching(
        self, batch_size: int, max_length: int, *, rolling: bool, ends: bool
    ) -> Callable[[Array, Array | None], Array]:
        """A cache of its own: tokens (B, T, D), and how many of each row are real unless all are -> their output.

        ends: one that holds max_length tokens and no more.
        """
        make, extend = (getattr(self.module, name, None) for name in ("init_cache", "extend"))
        if make is None or extend is None:
            raise Unsupported("has no init_cache and extend")
        kind = {"rolling": True} if rolling else {}
        _refuse(kind, accepted(make))
        grows = "max_length" not in (accepted(make) or ("max_length",))
        if grows and ends:
            raise Unsupported("grows as it is filled")
        cache = make(batch_size, **kind) if grows else make(batch_size, max_length, **kind)

        def extended(x: Array, lengths: Array | None) -> Array:
            nonlocal cache
            counted = {} if lengths is None else {"lengths": self.framework.to(lengths)}
            _refuse(counted, accepted(extend))
            output, cache = extend(self.framework.to(x), cache, **counted)
            return _back(output, self.framework)

        return extended


@dataclass(frozen=True)
class TargetFunction:
    """Anybody's function."""

    name: str
    framework: Framework
    function: Any
    limits: Limits = field(default_factory=Limits)

    def __call__(self, call: Call) -> tuple[Array, Array | None]:
        _refuse(call.keywords if call.mask is None else {"mask": call.mask} | call.keywords, accepted(self.function))
        arguments, keywords = _given(call, self.framework)
        given = arguments if call.mask is not None else arguments[:3]
        result = self.framework.apply(self.function, *given, **keywords)
        _unchanged(call, arguments, keywords, self.framework)
        return _output_and_weights(result, self.framework)

    def gradients(self, call: Call, d_output: Array) -> dict[str, Array]:
        """As a layer's."""
        return _gradients(self.function, call, d_output, self.framework)


@dataclass(frozen=True)
class TargetClass:
    """Anybody's class."""

    name: str
    framework: Framework
    cls: Any
    limits: Limits = field(default_factory=Limits)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def layer(self, config: AttentionConfig, dtype: str) -> TargetLayer:
        derived: dict[str, Any] = {"num_kv_heads": None, "kv_dim": config.embed_dim, "v_head_dim": config.head_dim}
        derived["head_dim"] = config.embed_dim / config.num_heads
        defaults = {field.name: field.default for field in fields(config)} | derived
        needed = {name: getattr(config, name) for name in defaults if getattr(config, name) != defaults[name]}
        takes = accepted(self.cls)
        _refuse(needed, takes if self.limits.settings is None else {*SIZES, *self.limits.settings})
        options = self.framework.options(dtype)
        options = {n: x for n, x in options.items() if takes is None or n in takes}
        module = self.cls(**needed, **options, **self.options)
        if self.framework.name == "torch":
            module = module.to(self.framework.options(dtype)["dtype"])
        module = module.eval() or module if hasattr(module, "eval") else module
        return TargetLayer(self.framework, module, accepted(getattr(module, "forward", module.__call__)))


NAMES = ("query", "key", "value", "mask")
DIFFERENTIATED = (*NAMES, "sinks")


def differentiated(call: Call) -> list[str]:
    """The arguments of a call that have gradients: its floating arrays."""
    given = dict(zip(NAMES, call.arguments, strict=True)) | call.keywords
    return [n for n in DIFFERENTIATED if isinstance(given.get(n), Array) and given[n].dtype.kind == "f"]


def _gradients(function: Any, call: Call, d_output: Array, framework: Framework) -> dict[str, Array]:
    assert framework.vjp is not None
    arguments, keywords = _given(call, framework)
    given = dict(zip(NAMES, arguments, strict=True)) | keywords

    def output(leaves: dict[str, Any]) -> Any:
        now = given | leaves
        positional = [now[name] for name in (NAMES if call.mask is not None else NAMES[:3])]
        result = function(*positional, **{name: now[name] for name in keywords})
        return result[0] if isinstance(result, tuple) else result

    found = framework.vjp(output, {name: given[name] for name in differentiated(call)}, framework.to(d_output))
    return {name: _back(x, framework) for name, x in found.items()}


class ChangedInputs(Exception):
    """A target wrote into what it was given."""


class WrongType(Exception):
    """A target returned something that is no array of its framework."""


def accepted(function: Any) -> frozenset[str] | None:
    """The names of a callable's parameters; None where it takes any keyword."""
    called = vars(function).get("__init__", function) if isinstance(function, type) else function  # past a metaclass
    parameters = inspect.signature(called).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


SIZES = ("embed_dim", "num_heads", "num_kv_heads")


def _refuse(needed: Iterable[str], taken: Collection[str] | None) -> None:
    missing = [name for name in needed if taken is not None and name not in taken]
    if missing:
        raise Unsupported(f"takes no {', '.join(missing)}")


def _given(call: Call, framework: Framework) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call in the framework's arrays: copies, so that a target that writes into them is found out."""
    to = _copied if framework.name == "numpy" else framework.to
    return tuple(to(x) for x in call.arguments), {name: to(x) for name, x in call.keywords.items()}


def _copied(x: Any) -> Any:
    return x.copy() if isinstance(x, Array) else x


def _unchanged(call: Call, arguments: tuple[Any, ...], keywords: dict[str, Any], framework: Framework) -> None:
    before = dict(zip(NAMES, call.arguments, strict=True)) | call.keywords
    for (name, x), after in zip(before.items(), (*arguments, *keywords.values()), strict=True):
        if isinstance(x, Array) and framework.back(after).astype(x.dtype).tobytes() != x.tobytes():  # JAX: int32
            raise ChangedInputs(f"changes its input {name}")


def _output_and_weights(result: Any, framework: Framework) -> tuple[Array, Array | None]:
    output, weights = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    return _back(output, framework), None if weights is None else _back(weights, framework)


def _back(x: Any, framework: Framework) -> Array:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise WrongType(f"returned {type(x).__name__}, expected an array of {framework.name}")
    try:
        return framework.back(x)
    except Exception as error:
        raise WrongType(f"returned {type(x).__module__}.{type(x).__name__}, no array of {framework.name}") from error

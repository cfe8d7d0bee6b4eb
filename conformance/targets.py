"""What the suite is pointed at: our wings and anybody's class or function, all seen through what they make public.

A class is built with `embed_dim, num_heads, num_kv_heads` and those further fields of `AttentionConfig` that a case
needs, takes canonical weights by `load_weights(mapping)` or `load_state_dict`, and is called as
`layer(query, key, value, mask)`. A function is called as `attention(query, key, value, mask, causal=...)`. A keyword
that a case needs and the target does not take makes the case "left out" for it, which is never counted as passed.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from conformance.frameworks import Framework, framework
from conformance.inputs import Call
from gqa_spec import AttentionConfig

Array = np.ndarray
WINGS = ("numpy", "torch", "jax")


class LeftOut(Exception):
    """A target cannot be asked this case, and says why."""


class NotATarget(Exception):
    """A target cannot be found, imported or used."""


@dataclass(frozen=True)
class Layer:
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
        to = self.framework.to
        keywords = {name: to(x) for name, x in call.keywords.items()}
        _refuse(keywords, self.accepted)
        result = self.framework.call(self.module, *(to(x) for x in call.arguments), **keywords)
        return _output_and_weights(result, self.framework)


@dataclass(frozen=True)
class Wing:
    """One of our own three implementations."""

    name: str

    @cached_property
    def framework(self) -> Framework:
        return framework(self.name)

    @cached_property
    def module(self) -> Any:
        return import_module(f"gqa_{self.name}")

    def layer(self, config: AttentionConfig, dtype: str) -> Layer:
        options = self.framework.options
        make = self.module.GroupedQueryAttention.from_config
        return Layer(self.framework, self.framework.build(lambda: make(config, **options(dtype))).eval())

    def attention(self, call: Call) -> tuple[Array, Array | None]:
        return Kernel(self.name, self.framework, self.module.grouped_query_attention)(call)


@dataclass(frozen=True)
class Kernel:
    """Anybody's function."""

    name: str
    framework: Framework
    function: Any

    def __call__(self, call: Call) -> tuple[Array, Array | None]:
        to = self.framework.to
        keywords = {name: to(x) for name, x in call.keywords.items()}
        _refuse(keywords, _accepted(self.function))
        query, key, value, mask = (to(x) for x in call.arguments)
        given = (query, key, value) if mask is None else (query, key, value, mask)
        return _output_and_weights(self.framework.apply(self.function, *given, **keywords), self.framework)


@dataclass(frozen=True)
class ForeignClass:
    """Anybody's class."""

    name: str
    framework: Framework
    cls: Any

    def layer(self, config: AttentionConfig, dtype: str) -> Layer:
        derived: dict[str, Any] = {"num_kv_heads": None, "kv_dim": config.embed_dim, "v_head_dim": config.head_dim}
        derived["head_dim"] = config.embed_dim / config.num_heads
        defaults = {field.name: field.default for field in fields(config)} | derived
        needed = {name: getattr(config, name) for name in defaults if getattr(config, name) != defaults[name]}
        accepted = _accepted(self.cls)
        _refuse(needed, accepted)
        options = self.framework.options(dtype)
        options = {n: x for n, x in options.items() if accepted is None or n in accepted}
        module = self.cls(**needed, **options)
        if self.framework.name == "torch":
            module = module.to(self.framework.options(dtype)["dtype"])
        module = module.eval() or module if hasattr(module, "eval") else module
        return Layer(self.framework, module, _accepted(getattr(module, "forward", module.__call__)))


def find_target(path: str, arrays: str | None) -> Kernel | ForeignClass:
    """MODULE:NAME, looked up in the working directory too. arrays names the framework where the object cannot tell.

    Raises NotATarget with one sentence where there is no such thing.
    """
    module_name, _, name = path.partition(":")
    if not (module_name and name):
        raise NotATarget(f"target: expected MODULE:NAME, got {path!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module_name), name)
    except Exception as error:
        raise NotATarget(f"target {path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise NotATarget(f"target {path}: expected a class or a function, got {type(found).__name__}")
    kind = arrays or _framework_of(found)
    return (ForeignClass if isinstance(found, type) else Kernel)(path, framework(kind), found)


def _framework_of(found: Any) -> str:
    bases = {base.__module__.split(".")[0] for base in getattr(found, "__mro__", ())}
    return "torch" if "torch" in bases else "jax" if "flax" in bases else "numpy"


def _accepted(function: Any) -> frozenset[str] | None:
    """The names of a callable's parameters; None where it takes any keyword."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


def _refuse(needed: dict[str, Any], accepted: frozenset[str] | None) -> None:
    missing = [name for name in needed if accepted is not None and name not in accepted]
    if missing:
        raise LeftOut(f"takes no {', '.join(missing)}")


def _output_and_weights(result: Any, framework: Framework) -> tuple[Array, Array | None]:
    output, weights = result if isinstance(result, tuple) else (result, None)
    return framework.back(output), None if weights is None else framework.back(weights)

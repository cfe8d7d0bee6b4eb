"""Our own three implementations, seen through what they make public."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from conformance.cases.inputs import Call
from conformance.targets.callables import TargetFunction, TargetLayer
from conformance.targets.frameworks import Framework, framework
from gqa_spec import AttentionConfig

Array = np.ndarray
BACKENDS = ("numpy", "torch", "jax")


@dataclass(frozen=True)
class Backend:
    """One of our own three implementations."""

    name: str

    @cached_property
    def framework(self) -> Framework:
        return framework(self.name)

    @cached_property
    def module(self) -> Any:
        return import_module(f"gqa_{self.name}")

    def layer(self, config: AttentionConfig, dtype: str) -> TargetLayer:
        options = self.framework.options
        make = self.module.GroupedQueryAttention.from_config
        return TargetLayer(self.framework, self.framework.build(lambda: make(config, **options(dtype))).eval())

    def attention(self, call: Call) -> tuple[Array, Array | None]:
        return TargetFunction(self.name, self.framework, self.module.grouped_query_attention)(call)

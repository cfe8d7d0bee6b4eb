"""What the suite is pointed at: our backends, public implementations by name, and anybody's class or function."""

from conformance.targets.backends import BACKENDS, Backend
from conformance.targets.foreign import ForeignClass, Kernel, Layer
from conformance.targets.protocol import Limits, NotATarget, Unsupported, fit
from conformance.targets.public import PUBLIC, Public, Target, find_target

__all__ = [
    "BACKENDS",
    "PUBLIC",
    "Backend",
    "ForeignClass",
    "Kernel",
    "Layer",
    "Limits",
    "NotATarget",
    "Public",
    "Target",
    "Unsupported",
    "find_target",
    "fit",
]  # fmt: skip

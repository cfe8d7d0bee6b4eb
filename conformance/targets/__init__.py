"""What the suite judges: our backends, public implementations by name, and a user's class or function.

protocol: limits, and how a case is fitted to them. callables: functions and classes as targets. backends: our three.
public: the table of public implementations, and `find_target`. adapters: their calls under our names.
frameworks: arrays into and out of NumPy, PyTorch and JAX. worker: a process of its own for a target.
"""

from conformance.targets.backends import BACKENDS, Backend
from conformance.targets.callables import TargetClass, TargetFunction, TargetLayer
from conformance.targets.protocol import Limits, NotATarget, Unsupported, fit
from conformance.targets.public import PUBLIC, Public, Target, find_target

__all__ = [
    "BACKENDS",
    "PUBLIC",
    "Backend",
    "Limits",
    "NotATarget",
    "Public",
    "Target",
    "TargetClass",
    "TargetFunction",
    "TargetLayer",
    "Unsupported",
    "find_target",
    "fit",
]  # fmt: skip

"""What the suite judges: our backends, public implementations by name, and a user's class or function.

callables: functions and classes as targets; sequences: packed and paged functions; binding: the names of their
parameters; weights: into a layer.
limits: what a target takes; fit: a case in those sizes; recognise: what a first call shows. backends: our three.
table: public implementations, each with its call; public: `find_target`. adapters: their calls under our names.
frameworks: arrays into and out of NumPy, PyTorch and JAX. worker: a process of its own for a target.
"""

from conformance.targets.backends import BACKENDS, Backend
from conformance.targets.callables import TargetClass, TargetFunction, TargetLayer
from conformance.targets.fit import fit
from conformance.targets.limits import Limits
from conformance.targets.protocol import NotATarget, Unsupported
from conformance.targets.public import Target, find_target
from conformance.targets.table import PUBLIC, Public

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
]

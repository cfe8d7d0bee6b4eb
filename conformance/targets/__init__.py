"""What the suite is pointed at: our wings, public implementations by name, and anybody's class or function."""

from conformance.targets.foreign import ForeignClass, Kernel, Layer
from conformance.targets.protocol import Limits, NotATarget, Unsupported, fit
from conformance.targets.public import PUBLIC, Public, Target, find_target
from conformance.targets.wings import WINGS, Wing

__all__ = [
    "PUBLIC", "WINGS", "ForeignClass", "Kernel", "Layer", "Limits", "NotATarget", "Public", "Target", "Unsupported",
    "Wing", "find_target", "fit",
]  # fmt: skip

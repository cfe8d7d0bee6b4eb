"""Names of targets, as people write them."""

from __future__ import annotations

import re

from conformance.targets import BACKENDS, PUBLIC
from gqa.errors import did_you_mean


def check_target(option: str, name: str) -> None:
    """Raises ValueError for a name that can be no target, with the nearest that can.

    A name with a colon is looked up later, in a process of its own.
    """
    if name in PUBLIC:
        return
    file = re.match(r"(.+)\.py:(.+)$", name)
    if file:
        module = file[1].removeprefix("./").replace("/", ".")
        raise ValueError(f"{option}: expected MODULE:NAME, got {name!r}; did you mean {module}:{file[2]}?")
    if name in BACKENDS:
        raise ValueError(f"{option}: {name} is a backend of this project; `gqa conform` alone compares the backends")
    if ":" not in name.strip(":"):
        nearest = did_you_mean(name, PUBLIC)
        listed = "" if nearest else f": {', '.join(PUBLIC)}"
        raise ValueError(
            f"{option}: expected MODULE:NAME or the name of a public implementation{listed}, got {name!r}{nearest}"
        )

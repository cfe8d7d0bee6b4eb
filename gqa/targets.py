"""Names of targets, as people write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from conformance.checks.judge import PROFILES, TIME_LIMIT, Options
from conformance.targets import BACKENDS, PUBLIC, NotATarget
from conformance.targets.limits import DTYPES, Limits, read_limits, with_changes
from gqa.errors import did_you_mean, one_of
from gqa_weights import LAYOUTS


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


def judged_by(
    arrays: str | None,
    limits: Path | None,
    layout: str | None,
    weights: str | None,
    device: str | None,
    *,
    dtypes: str | None = None,
    profile: str | None = None,
    case: str | None = None,
    limit: float | None = None,
) -> Options:
    """The options of a run. Raises ValueError for a value that an option cannot have."""
    changes: dict[str, Any] = {}
    try:
        changes |= read_limits(limits) if limits is not None else {}
        named = {"layout": layout, "weights": weights, "device": device}
        changes |= {name: value for name, value in named.items() if value is not None}
        with_changes(Limits(), changes, "limits")
    except NotATarget as error:
        raise ValueError(str(error)) from error
    if weights is not None:
        one_of("--weights", weights, LAYOUTS)
    chosen = None if dtypes is None else tuple(one_of("--dtypes", name.strip(), DTYPES) for name in dtypes.split(","))
    return Options(
        arrays,
        changes,
        chosen,
        "full" if profile is None else one_of("--profile", profile, PROFILES),
        case,
        TIME_LIMIT if limit is None else limit,
    )

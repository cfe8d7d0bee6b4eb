"""`--backend`: which of the backends computes, the same in every command."""

from __future__ import annotations

from gqa.errors import did_you_mean
from gqa_spec.packages import missing, not_installed

PACKAGES = {"torch": ("torch",), "jax": ("jax", "flax"), "numpy": ("numpy",)}  # the first that is installed computes


def backend_name(given: str | None) -> str:
    """The backend that is given, or the first that is installed."""
    if given is None:
        return next(name for name, packages in PACKAGES.items() if not missing(packages))
    if given not in PACKAGES:
        raise ValueError(
            f"--backend: expected one of {', '.join(PACKAGES)}, got {given!r}{did_you_mean(given, PACKAGES)}"
        )
    absent = missing(PACKAGES[given])
    if absent:
        raise ValueError(f"--backend {given}: {not_installed(absent)}")
    return given


def two_backends(given: list[str]) -> tuple[str, str]:
    """One for each side: both as they are given, one given for both, or NumPy and another that is installed."""
    if len(given) > 2:
        raise ValueError(f"--backend: expected one for A and one for B, got {len(given)}")
    if given:
        return backend_name(given[0]), backend_name(given[-1])
    other = next((name for name in ("torch", "jax") if not missing(PACKAGES[name])), "numpy")
    return "numpy", other

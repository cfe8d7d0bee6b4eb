"""The settings of a checkpoint, read one by one: each is understood, known not to matter, or an error by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

REQUIRED: Any = object()
MOST = 2**31 - 1  # every backend counts positions and sizes in 32 bits


def switched_off(value: Any) -> bool:
    """Whether a setting with this value changes nothing, whatever it means: null, false, 0, or empty."""
    plain = isinstance(value, bool | int | float | str | list | tuple | Mapping)
    return value is None or (plain and not value)


class Settings:
    """The key-value pairs of one file.

    defaults: what the family's own code takes where a key is missing. keys: usual key -> the family's own key for it;
    every method takes the usual one. A key that is there but null is None, which is not the default: Mistral without a
    window says so with null.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str,
        family: str,
        defaults: Mapping[str, Any],
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self.values, self.source, self.family, self.defaults = values, source, family, defaults
        self.keys = keys or {}
        self.done: set[str] = set()

    def key(self, usual: str) -> str:
        return self.keys.get(usual, usual)

    def reads(self, key: str) -> bool:
        """Whether the family's code reads such a key."""
        return self.key(key) in self.defaults

    def given(self, key: str) -> bool:
        """Whether the file says it, null apart."""
        return self.values.get(self.key(key)) is not None

    def skip(self, *keys: str) -> None:
        """Settings that do not matter beside others."""
        self.done.update(map(self.key, keys))

    def get(self, key: str) -> Any:
        """The value, or the family's default, or an error where there is none."""
        key = self.key(key)
        self.done.add(key)
        value = self.values[key] if key in self.values else self.defaults.get(key, REQUIRED)
        if value is REQUIRED:
            raise ValueError(f"{self.source}: {key} is missing, which family {self.family} needs")
        return value

    def integer(self, key: str, *, optional: bool = False, most: int = MOST) -> Any:
        value = self.get(key)
        if value is None and optional:
            return None
        good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not good or value > most:
            raise self.wrong(key, f"an integer >= 1 and <= {most}")
        return value

    def number(self, key: str, *, optional: bool = False) -> Any:
        value = self.get(key)
        if value is None and optional:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(key, "a finite number")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def choice(self, key: str, allowed: Mapping[str, Any]) -> Any:
        """What the value means."""
        value = self.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.unsupported(key)
        return allowed[value]

    def list_of(self, key: str, allowed: Iterable[Any], length: int) -> list[Any]:
        value, allowed = self.get(key), tuple(allowed)
        if not isinstance(value, list | tuple) or len(value) != length:
            raise self.wrong(key, f"a list with one entry for each of {length} layers")
        for entry in value:
            if isinstance(entry, list | dict) or entry not in allowed:
                raise ValueError(
                    f"{self.source}: {self.key(key)} with {entry!r} of family {self.family} is not supported, "
                    f"only {', '.join(map(str, allowed))}"
                )
        return list(value)

    def only(self, key: str, *allowed: Any) -> None:
        """A setting that changes the maths, of which one value is the maths that we have."""
        key = self.key(key)
        self.done.add(key)
        value = self.values.get(key)
        same = (type(value) is type(good) and value == good for good in allowed)  # 0 is not false
        if key in self.values and not any(same):
            raise self.unsupported(key)

    def wrong(self, key: str, expected: str) -> ValueError:
        return ValueError(
            f"{self.source}: {self.key(key)} of family {self.family}: expected {expected}, got {self.get(key)!r}"
        )

    def unsupported(self, key: str, why: str = "") -> ValueError:
        key = self.key(key)
        return ValueError(
            f"{self.source}: {key} {self.values.get(key)!r} of family {self.family} is not supported{why}"
        )

    def finish(self, ignored: Iterable[str]) -> None:
        """Everything was read, is known not to matter, or is switched off: nothing is ignored in silence."""
        known = self.done | set(ignored)
        unknown = [key for key, value in self.values.items() if key not in known and not switched_off(value)]
        if unknown:
            listed = ", ".join(f"{key} = {str(self.values[key])[:40]}" for key in unknown[:8])
            raise ValueError(f"{self.source}: unknown settings of family {self.family}: {listed}")

"""Check of options that have a fixed set of values."""

from __future__ import annotations

from collections.abc import Collection


def check_choice(name: str, value: object, allowed: Collection[object], owner: str = "") -> None:
    """Checks the value of an option.

    Args:
        name: name of the option.
        value: its value.
        allowed: allowed values.
        owner: class that has the option, for the message.

    Raises:
        ValueError: the value is not allowed. The message names the option, the value and the allowed ones.
    """
    if value not in allowed:
        prefix = f"{owner}: " if owner else ""
        raise ValueError(f"{prefix}`{name}` must be one of {', '.join(map(str, allowed))}, got {value!r}.")

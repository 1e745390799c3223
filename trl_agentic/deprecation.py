"""Deprecated names of options, which are accepted for one release."""

from __future__ import annotations

import warnings
from typing import Any


def renamed_option(old: str, old_value: Any, new: str, new_value: Any, default: Any = None) -> Any:
    """Resolves an option that was renamed.

    Args:
        old: deprecated name.
        old_value: value under the deprecated name, `None` if it was not given.
        new: current name.
        new_value: value under the current name.
        default: default of the current name.

    Returns:
        The value to use.

    Raises:
        ValueError: both names were given, with different values.

    Warns:
        FutureWarning: the deprecated name was given.
    """
    if old_value is None:
        return new_value
    if new_value not in (default, old_value):
        raise ValueError(f"Set `{new}` or its deprecated name `{old}`, not both.")
    message = f"`{old}` is deprecated and will be removed in the next release: use `{new}`."
    warnings.warn(message, FutureWarning, stacklevel=3)
    return old_value

"""Checks of the fields of a configuration. Each error names the field, its value and the allowed ones."""

from __future__ import annotations

from typing import Any

from trl_agentic.options import check_choice


def check_choices(config: Any) -> None:
    """Checks every field that a class of this package declares with `choices` in its metadata.

    Raises:
        ValueError: a value is not one of the choices.
    """
    package = __name__.partition(".")[0]
    own = [kind for kind in type(config).__mro__ if kind.__module__.partition(".")[0] == package]
    for name in dict.fromkeys(name for kind in own for name in kind.__annotations__):
        field = type(config).__dataclass_fields__.get(name)
        choices = None if field is None else field.metadata.get("choices")
        if choices is not None:
            check_choice(name, getattr(config, name), choices)


def check_range(config: Any, *names: str, least: float, most: float | None = None) -> None:
    """Checks that numbers lie in a closed range. A field that is `None` is not checked.

    Args:
        config: the configuration.
        *names: names of the fields.
        least: smallest allowed value.
        most: largest allowed value, `None` for no limit.

    Raises:
        ValueError: a number lies outside.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or (least <= value and (most is None or value <= most)):
            continue
        allowed = f"lie in [{least:g}, {most:g}]" if most is not None else f"be at least {least:g}"
        raise ValueError(f"`{name}` must {allowed}, got {value}.")

"""Checks of the fields of configurations and image processors."""

import math
from typing import Any


def require_field(owner: Any, field: str, condition: bool, accepted: str):
    """Raises `ValueError` unless a condition of a field is met.

    Args:
        owner: what has the field.
        field: its name.
        condition: whether its value is valid.
        accepted: what would be.
    """
    if not condition:
        raise ValueError(f"`{field}` must be {accepted}, but got {getattr(owner, field)!r}.")


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number that JSON can store, not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

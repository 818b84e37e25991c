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


def list_of_numbers(field: str, values: Any) -> list[float]:
    """Returns the value of a field as a list, or raises `ValueError` if it is not a list or tuple of numbers."""
    if not isinstance(values, (list, tuple)) or not all(is_number(value) for value in values):
        raise ValueError(f"`{field}` must be a list of numbers, but got {values!r}.")
    return list(values)

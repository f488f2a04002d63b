"""Counts that a caller gives: whole numbers, 1 or more."""

from __future__ import annotations

from numbers import Integral


def count_problem(name: str, value: object) -> str:
    """Why a value is no count, or "".

    Args:
        name: What it is of, e.g. "threads".
        value: Of any type.
    """
    if not isinstance(value, Integral):
        return f"{name} is {value!r}, expected a whole number"
    return "" if int(value) >= 1 else f"{name} is {value}, expected 1 or more"

"""Optimization profiles as they are typed."""

from __future__ import annotations

from tfx.errors import RecipeError, SignatureError
from tfx.signature import ShapeRange


def profile_from_text(text: str) -> dict[str, ShapeRange]:
    """Read a profile: ``"batch=1,sequence=1..128..512"``.

    An axis has one size, or a smallest and a largest, which is the tuned one then, or a tuned
    one between them.

    Raises:
        RecipeError: If it is anything else.
    """
    sizes = {}
    for part in text.split(","):
        axis, equals, numbers = (word.strip() for word in part.partition("="))
        found = numbers.split("..")
        if not (axis and equals and all(n.isdecimal() for n in found) and len(found) <= 3):
            raise RecipeError(f"{part!r} is no range of an axis, expected AXIS=MIN..OPT..MAX")
        if axis in sizes:
            raise RecipeError(
                f"axis {axis!r} is given twice in {text!r}", hint="Give each axis one range."
            )
        try:
            sizes[axis] = ShapeRange(int(found[0]), int(found[:2][-1]), int(found[-1]))
        except SignatureError as error:
            raise RecipeError(f"{part!r} is no range of an axis: {error}") from error
    return sizes

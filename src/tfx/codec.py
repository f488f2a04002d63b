"""Frozen dataclasses to plain JSON values and back, checked against their annotations."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from .errors import TfxError

T = TypeVar("T")


class DecodeError(TfxError):
    """JSON that does not have the shape of the class asked for.

    Attributes:
        problems: One line per wrong place, e.g. ``"signature.inputs[0].dtype: missing"``.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def encode(value: Any) -> Any:
    """Turn dataclasses, tuples, mappings and enums into dicts, lists and scalars.

    Fields that hold their default are left out, so that adding a field does not change
    the files written by code that does not use it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: encode(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not _is_default(f, getattr(value, f.name))
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], data: Any) -> T:
    """Build ``cls`` from what ``encode`` gave, checking every field's type.

    Raises:
        DecodeError: With every wrong, missing and unknown field.
    """
    problems: list[str] = []
    value = _decode(cls, data, "", problems)
    if problems:
        raise DecodeError(problems)
    return typing.cast(T, value)


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    # `is`, not `==`: False == 0 and True == 1 would drop a field of another type.
    return field.default is not dataclasses.MISSING and (
        value is field.default
        or (type(value) is type(field.default) and bool(value == field.default))
    )


def _decode(kind: Any, data: Any, path: str, problems: list[str]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, data, path, problems)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, path, problems)
    if origin is tuple:
        if not isinstance(data, list):
            return _wrong(path, "a list", data, problems)
        return tuple(
            _decode(arguments[0], item, f"{path}[{i}]", problems) for i, item in enumerate(data)
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            return _wrong(path, "an object", data, problems)
        return {
            key: _decode(arguments[1], item, f"{path}.{key}", problems)
            for key, item in data.items()
        }
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(data)
        except ValueError:
            return _wrong(path, f"one of {', '.join(str(m.value) for m in kind)}", data, problems)
    if kind is float and type(data) is int:
        return float(data)
    # Exact types: JSON has no int that is also a bool.
    return data if type(data) is kind else _wrong(path, kind.__name__, data, problems)


def _decode_union(members: tuple[Any, ...], data: Any, path: str, problems: list[str]) -> Any:
    if data is None and type(None) in members:
        return None
    attempts: list[list[str]] = []
    for member in members:
        if member is type(None):
            continue
        attempt: list[str] = []
        value = _decode(member, data, path, attempt)
        if not attempt:
            return value
        attempts.append(attempt)
    # The member that went furthest wrong in the fewest places is the one that was meant.
    problems += sorted(attempts, key=len)[0]
    return None


def _decode_dataclass(kind: type, data: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(data, dict):
        return _wrong(path, "an object", data, problems)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    before = len(problems)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        where = f"{path}.{name}".lstrip(".")
        if name in data:
            values[name] = _decode(hints[name], data[name], where, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}: missing")
    problems += [f"{path}.{name}".lstrip(".") + ": unknown" for name in data if name not in fields]
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except TfxError as error:  # the class's own __post_init__ refused the values
        problems.append(f"{path or kind.__name__}: {error}")
        return None


def _wrong(path: str, expected: str, data: Any, problems: list[str]) -> None:
    shown = repr(data)
    if len(shown) > 40:
        shown = shown[:37] + "..."
    problems.append(f"{path or 'file'}: got {shown}, expected {expected}")

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.codec import DecodeError, decode, encode
from tfx.errors import TfxError


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Leaf:
    count: int
    ratio: float = 0.5
    color: Color = Color.RED

    def __post_init__(self):
        if self.count < 0:
            raise TfxError(f"count is {self.count}, expected 0 or more")


@dataclass(frozen=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...] = ()
    dims: tuple[int | str, ...] = ()
    named: Mapping[str, Leaf] = field(default_factory=dict)
    best: Leaf | None = None
    flag: bool = False
    anything: Any = None


leaves = st.builds(
    Leaf,
    st.integers(0, 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(Color),
)
trees = st.builds(
    Tree,
    st.text(),
    st.lists(leaves, max_size=3).map(tuple),
    st.lists(st.integers() | st.text(), max_size=4).map(tuple),
    st.dictionaries(st.text(), leaves, max_size=3),
    st.none() | leaves,
    st.booleans(),
)


@given(trees)
def test_round_trip_through_json_text(tree):
    assert decode(Tree, json.loads(json.dumps(encode(tree)))) == tree


def test_defaults_are_left_out():
    assert encode(Tree("t")) == {"name": "t"}
    assert encode(Tree("t", flag=True, best=Leaf(1))) == {
        "name": "t",
        "best": {"count": 1},
        "flag": True,
    }


@dataclass(frozen=True)
class Zero:
    count: Any = 0


@pytest.mark.parametrize("value", [False, 0.0, ""])
def test_what_only_equals_the_default_is_kept(value):
    assert encode(Zero(value)) == {"count": value}
    assert type(encode(Zero(value))["count"]) is type(value)


def test_int_is_read_as_float_where_a_float_is_meant():
    leaf = decode(Leaf, {"count": 1, "ratio": 2})
    assert leaf.ratio == 2.0
    assert type(leaf.ratio) is float


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({}, "name: missing"),
        ({"name": "t", "colour": 1}, "colour: unknown"),
        ({"name": 3}, "name: got 3, expected str"),
        ({"name": None}, "name: got None, expected str"),
        ({"name": "t", "flag": 1}, "flag: got 1, expected bool"),
        ({"name": "t", "leaves": {}}, "leaves: got {}, expected a list"),
        ({"name": "t", "leaves": [7]}, "leaves[0]: got 7, expected an object"),
        ({"name": "t", "leaves": [{}]}, "leaves[0].count: missing"),
        ({"name": "t", "leaves": [{"count": True}]}, "leaves[0].count: got True, expected int"),
        ({"name": "t", "leaves": [{"count": 1.0}]}, "leaves[0].count: got 1.0, expected int"),
        ({"name": "t", "leaves": [{"count": 1, "x": 0}]}, "leaves[0].x: unknown"),
        (
            {"name": "t", "best": {"count": 1, "color": "green"}},
            "best.color: got 'green', expected one of red, blue",
        ),
        (
            {"name": "t", "best": {"count": 1, "color": ["red"]}},
            "best.color: got ['red'], expected one of red, blue",
        ),
        ({"name": "t", "named": []}, "named: got [], expected an object"),
        ({"name": "t", "named": {"a": {}}}, "named.a.count: missing"),
        ({"name": "t", "dims": [1.5]}, "dims[0]: got 1.5, expected int"),
        ({"name": "t", "leaves": [{"count": -1}]}, "leaves[0]: count is -1, expected 0 or more"),
        ([], "file: got [], expected an object"),
        ({"name": "t", "flag": "y" * 99}, f"flag: got '{'y' * 36}..., expected bool"),
    ],
)
def test_each_problem_names_its_place(document, problem):
    with pytest.raises(DecodeError) as caught:
        decode(Tree, document)
    assert caught.value.problems == [problem]


def test_all_problems_are_listed_at_once():
    with pytest.raises(DecodeError) as caught:
        decode(Tree, {"leaves": [{"count": 1}, {"count": "2"}], "flag": 0, "extra": 1})
    assert caught.value.problems == [
        "name: missing",
        "leaves[1].count: got '2', expected int",
        "flag: got 0, expected bool",
        "extra: unknown",
    ]
    assert str(caught.value) == "; ".join(caught.value.problems)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["name", "leaves", "dims", "named", "best", "flag", "count", "color"])


@given(json_values | st.dictionaries(names, json_values | st.dictionaries(names, json_values)))
def test_any_json_decodes_or_is_refused(document):
    try:
        tree = decode(Tree, document)
    except DecodeError:
        return
    assert isinstance(tree, Tree)
    assert isinstance(tree.name, str)
    assert all(isinstance(leaf, Leaf) for leaf in tree.leaves)

"""Attention written by hand: each exports with its attention fused, as a file of the user's."""

import inspect

import pytest

from tfx.export import handwritten
from tfx.export.families import HANDWRITTEN
from tfx.export.handwritten import FACTORIES
from tfx.export.survey import survey, table

ATTENTIONS = {"transformer": 3, "encoder": 2}


@pytest.mark.parametrize("family", HANDWRITTEN, ids=lambda family: family.class_name)
def test_by_hand(family):
    (found,) = survey([family])
    assert found.problem == ""
    assert (found.attention, found.softmax) == (ATTENTIONS.get(family.class_name, 1), 0)
    assert found.error <= 1e-4
    assert f"| {family.name} | `{family.class_name}` | whole | ok |" in table([found])


def test_every_factory_is_in_the_table():
    functions = inspect.getmembers(handwritten, inspect.isfunction)
    written = {
        name
        for name, function in functions
        if function.__module__ == handwritten.__name__ and name[0] != "_"
    }
    assert written == set(FACTORIES)

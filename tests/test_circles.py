"""Modules of a folder import each other in no circle, not even for type checkers."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from test_house import FOLDERS, MODULES


def siblings(name):
    """Modules that one imports from its own folder, on load, in a function or for types."""
    parts = name.split(".")
    if MODULES[name].name != "__init__.py":
        parts = parts[:-1]
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = [*parts[: len(parts) - node.level + 1], *(node.module or "").split(".")]
            source = ".".join(filter(None, module))
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield whole if whole in MODULES else source


@pytest.mark.parametrize("folder", sorted(FOLDERS.keys() - {"tfx"}))
def test_no_circle(folder):
    graph = {name: set(siblings(name)) for name in MODULES if name.startswith(f"{folder}.")}
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" - ".join(reversed(error.args[1])))

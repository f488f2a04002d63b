"""Factories, and modules in memory."""

import sys

import pytest
import torch
from support.loading import NAMES, RANDOM, RECIPE, refused
from torch import nn

from tfx.errors import SourceError
from tfx.export.checkpoint.loader import load
from tfx.recipe import ExportRecipe, SourceKind

# factories


def test_factory(factories):
    loaded = load(f"{factories}:linear", RECIPE)
    assert isinstance(loaded.module, nn.Linear)
    assert loaded.examples.shape == (2, 4)
    assert (loaded.name, loaded.task, loaded.config, loaded.folder) == ("linear", "", None, None)
    assert not loaded.module.training


def test_factory_weights_come_from_the_seed(factories):
    digests = [
        load(f"{factories}:linear", ExportRecipe(seed=seed)).source.digest for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_factory_leaves_no_module_behind(factories):
    before = set(sys.modules)
    load(f"{factories}:linear", RECIPE)
    assert not [name for name in set(sys.modules) - before if "factor" in name]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("absent", "{file} has no function 'absent'"),
        ("constant", "{file} has no function 'constant'"),
        ("failing", "{file}:failing failed: RuntimeError: no data here"),
        ("bare", "{file}:bare returned Linear, expected (module, example_inputs)"),
        ("three", "{file}:three returned tuple, expected (module, example_inputs)"),
        ("swapped", "{file}:swapped returned a Tensor first, expected an nn.Module"),
    ],
)
def test_factory_that_is_wrong(factories, factory, message):
    assert refused(f"{factories}:{factory}")[0] == message.format(file=factories)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def (", "SyntaxError: invalid syntax"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_factory_file_that_does_not_run(tmp_path, text, problem):
    path = tmp_path / "broken.py"
    path.write_text(text)
    message, _ = refused(f"{path}:make")
    assert message.startswith(f"{path}:make failed: {problem}")


def test_factory_file_that_is_not_there(tmp_path):
    assert refused(f"{tmp_path}/gone.py:make")[0] == f"no such file: {tmp_path}/gone.py"


def test_python_file_without_function(factories):
    assert refused(factories) == (
        f"{factories} names a file and no function in it",
        f"Write {factories}:function.",
    )


def test_factory_name_that_is_none(factories):
    assert refused(f"{factories}:two words") == (
        "'two words' is not the name of a function",
        NAMES,
    )


def test_factory_with_random_weights(factories):
    assert refused(f"{factories}:linear", RANDOM) == (
        "a factory makes its own weights, --random-weights does not apply",
        "Leave it out.",
    )


@pytest.mark.parametrize(("factory", "dtype"), [("half", "float16"), ("brain", "bfloat16")])
def test_low_precision_module(factories, factory, dtype):
    assert refused(f"{factories}:{factory}") == (
        f"the module holds torch.{dtype} weights, expected torch.float32",
        "Export in float32 (module.float()); lower the precision of the bundle after.",
    )


def test_low_precision_in_a_buffer_that_is_not_saved():
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(1, dtype=torch.float64), persistent=False)
    with pytest.raises(SourceError, match=r"^the module holds torch.float64 weights, expected"):
        load(module, RECIPE, torch.ones(1, 2))


# modules in memory


def test_module_in_memory():
    module = nn.Linear(2, 2)
    loaded = load(module, RECIPE, torch.ones(1, 2))
    assert loaded.module is module
    assert loaded.source.kind is SourceKind.MODULE
    assert loaded.source.location == "Linear"


def test_module_in_memory_without_examples():
    assert refused(nn.Linear(2, 2)) == (
        "a module in memory needs example inputs",
        "Pass examples={'input name': tensor, ...}.",
    )


def test_neither_name_nor_module():
    assert refused(3)[0] == "got int, expected a name or an nn.Module"

"""NumPy's threads, while a session is opened."""

import os
import subprocess
import sys

import pytest

from tfx.runtime.blas import CYCLES_LOG2, VARIABLE

# What OpenBLAS reads as NumPy is imported, and what is left of it.
WATCHED = f"""
import os, sys
from tfx.runtime.blas import import_numpy
class Seen:
    def find_spec(self, name, *more):
        if name == "numpy":
            print(os.environ.get({VARIABLE!r}), flush=True)
sys.meta_path.insert(0, Seen())
{{before}}
import_numpy()
print("numpy" in sys.modules, os.environ.get({VARIABLE!r}))
"""


def run(before="", **environment):
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != VARIABLE} | environment,
    )
    return ended.stdout.split("\n")[:-1]


def test_its_threads_sleep_sooner_and_the_environment_stays():
    assert run() == [CYCLES_LOG2, "True None"]


@pytest.mark.parametrize("value", ["4", ""])
def test_what_the_environment_says_holds(value):
    assert run(**{VARIABLE: value}) == [f"False {value}"]


def test_where_numpy_is_there_nothing_changes():
    assert run("import numpy") == ["None", "True None"]

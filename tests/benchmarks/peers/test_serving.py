"""Peers are served in whatever environment has the library, without tfx."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tfx.bench.peers import embedders, generators, serving
from tfx.bench.peers.serving import said_versions


def answers(script, *questions):
    """What a process says that has neither tfx nor this folder on its path."""
    code = (
        "import runpy, sys; sys.modules['tfx'] = None\n"
        f"sys.argv = [{serving.__file__!r}, {script!r}]\n"
        f"runpy.run_path({serving.__file__!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input="".join(f"{json.dumps(question)}\n" for question in questions),
        capture_output=True,
        text=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("module", [embedders, generators], ids=lambda module: module.__name__)
def test_scripts_run_by_their_path_without_tfx(module):
    (answer,) = answers(module.__file__, {"do": "load", "peer": "ctranslate2", "job": {}})
    assert answer["error"].startswith("TypeError: Job.__init__() missing")


def test_a_question_that_fails_ends_nothing():
    question = {"do": "try", "texts": [], "batch": 1}
    failed = {"error": "AssertionError: ", "hint": ""}
    assert answers(embedders.__file__, question, question) == [failed, failed]


def test_versions_are_of_what_is_installed():
    assert said_versions("numpy", "no-such-thing") == f"numpy {np.__version__}"


def test_everybody_has_the_same_threads_and_no_hub(monkeypatch):
    monkeypatch.setattr(serving.os, "environ", {})
    serving.set_environment(3)
    assert serving.os.environ == {
        "OMP_NUM_THREADS": "3",
        "RAYON_NUM_THREADS": "3",
        "HF_HUB_OFFLINE": "1",
    }

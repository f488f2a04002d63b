import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tfx.bench import environments as module
from tfx.bench.environments import (
    ENVIRONMENTS,
    Environment,
    constraints_of,
    environments,
    make_environment,
    read_environments,
    run_logged,
)
from tfx.bench.peers.embedders import PEERS
from tfx.bench.peers.generators import PEERS as WRITERS
from tfx.errors import DataError


class Pip:
    """Stands in for the commands that make an environment."""

    def __init__(self, says="", status=0):
        self.says, self.status = says, status
        self.commands = []

    def __call__(self, command, log):
        self.commands.append(list(command))
        if "pip" not in command:
            return 0
        log.write_text(self.says)
        return self.status


def test_an_environment_is_made_once(tmp_path):
    pip = Pip()
    made = make_environment("fastembed", tmp_path, ["torch==2"], pip)
    assert made == Environment("fastembed", str(tmp_path / "fastembed/venv/bin/python"))
    assert [command[1:3] for command in pip.commands] == [["-m", "venv"], ["-m", "pip"]]
    assert pip.commands[1][-1] == "fastembed"
    assert (tmp_path / "fastembed/constraints.txt").read_text() == "torch==2\n"
    assert make_environment("fastembed", tmp_path, [], pip) == made
    assert len(pip.commands) == 2
    assert read_environments(tmp_path) == {"fastembed": made}


def test_one_that_cannot_be_made_says_why_and_is_not_tried_again(tmp_path):
    pip = Pip("Looking\nERROR: No matching distribution\nnotice: new pip\n", 1)
    made = make_environment("fastembed", tmp_path, [], pip)
    assert made.problem == "not installed: No matching distribution"
    assert make_environment("fastembed", tmp_path, [], pip) == made
    assert len(pip.commands) == 2


@pytest.mark.parametrize(
    ("says", "why"), [("killed\n", "killed"), ("", "it printed nothing")], ids=["words", "none"]
)
def test_a_log_without_an_error_gives_its_last_line(tmp_path, says, why):
    assert make_environment("fastembed", tmp_path, [], Pip(says, 1)).problem.endswith(why)


def test_a_damaged_state_is_an_error(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/state.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(DataError) as raised:
        read_environments(tmp_path)
    assert str(raised.value) == f"{tmp_path / 'x/state.json'} cannot be read: python: missing"
    assert raised.value.hint == "Delete its folder, to make it again."


def test_only_torch_is_held_to_our_version():
    text = "# torch==1\ntorch==2.13.0\ntorchvision==3\nnumpy==2 ; python_version > '3'\n"
    assert constraints_of(text) == ["torch==2.13.0"]


def test_output_goes_to_the_end_of_the_log(tmp_path):
    log = tmp_path / "log"
    assert run_logged(["sh", "-c", "echo one; exit 3"], log) == 3
    assert run_logged(["sh", "-c", "echo two >&2"], log) == 0
    assert log.read_text() == "one\ntwo\n"


def test_every_peer_has_an_environment():
    named = {peer.environment for peers in (PEERS, WRITERS) for peer in peers.values()}
    assert named - {""} == set(ENVIRONMENTS)


def test_the_command_makes_all_and_names_what_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module,
        "make_environment",
        lambda name, folder, lines: Environment(name, "p", "broken" * (name == "optimum")),
    )
    done = CliRunner().invoke(environments, [str(tmp_path)])
    assert done.stdout.splitlines() == [
        "optimum: broken",
        "fastembed: p",
        "ctranslate2: p",
        "genai: p",
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_runs_the_comparisons_one_after_another():
    root = Path(__file__).parents[2]
    if not (root / "Makefile").is_file():
        pytest.skip("no Makefile here")
    command = ["make", "-n", "-C", str(root), "bench-cpu", "DATA=data", "TEXT_ARGS=--no-peers"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = [word for word in done.stdout.split() if word.startswith("tfx.bench.")]
    # Before them the texts that int8 is calibrated on, unless they are there.
    assert modules[-3:] == ["tfx.bench.environments", "tfx.bench.cpu", "tfx.bench.text"]
    assert f"--data {root / 'data'} " in done.stdout
    assert "--no-peers" in done.stdout
    done = subprocess.run(command[:5], capture_output=True, text=True)
    assert "name the folder of evaluation data: DATA=DIR" in done.stderr

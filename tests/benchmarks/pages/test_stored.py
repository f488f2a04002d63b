"""Files of results: what they are called, and that they come back as they went."""

import dataclasses
import json

import pytest
from support.reports import MACHINE

from tfx.bench.pages.stored import read_stored, save_result, slug_of
from tfx.errors import DataError

WHEN = "2026-01-01T10:20:30+00:00"


def test_a_result_is_kept_by_machine_command_and_date_and_comes_back(tmp_path):
    path = save_result(tmp_path / "new" / "folder", "text", WHEN, {"rows": [1.5]}, MACHINE)
    assert path.name == "made-up-2cpu-text-2026-01-01T102030.json"
    found = read_stored(json.loads(path.read_text()))
    assert (found.command, found.created, found.machine) == ("text", WHEN, MACHINE)
    assert found.result == {"rows": [1.5]}


@pytest.mark.parametrize(
    ("cpu", "slug"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c-2cpu"),
        ("AMD EPYC 9R14 96-Core Processor", "amd-epyc-9r14-96-core-2cpu"),
        ("", "cpu-2cpu"),
        ("../weird / name", "..-weird-name-2cpu"),
    ],
)
def test_the_name_of_a_machine(cpu, slug):
    assert slug_of(dataclasses.replace(MACHINE, cpu=cpu)) == slug


def test_without_a_machine_it_is_this_one(tmp_path):
    path = save_result(tmp_path, "text", WHEN, {})
    assert read_stored(json.loads(path.read_text())).machine.python.startswith("3.")


def test_other_documents_are_none_and_damaged_ones_errors():
    assert read_stored([1]) is None
    assert read_stored({"rows": []}) is None
    with pytest.raises(DataError, match=r"no stored result: .*machine: missing") as caught:
        read_stored({"command": "cpu", "created": WHEN, "result": {}})
    assert caught.value.hint == "Measure again with --save."


def test_a_result_that_cannot_be_kept_is_an_error(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*results"):
        save_result(tmp_path / "results", "text", WHEN, {}, MACHINE)

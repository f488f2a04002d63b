import io
import json
import sys

import click
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx import console
from tfx.errors import BundleError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_json_option_and_document():
    @click.command
    @console.json_option
    def command(as_json):
        if as_json:
            console.emit_json({"größe": [1.5, None]})

    said = CliRunner().invoke(command, ["--json"]).stdout
    assert json.loads(said) == {"größe": [1.5, None]}
    assert "größe" in said
    assert CliRunner().invoke(command).stdout == ""


@pytest.mark.parametrize(
    ("hint", "said"),
    [("Do this.", "Error: what is wrong\nDo this.\n"), ("", "Error: what is wrong\n")],
)
def test_an_error_of_ours_is_told_without_a_traceback(hint, said):
    @click.command
    def command():
        with console.told_errors():
            raise BundleError("what is wrong", hint=hint)

    result = CliRunner().invoke(command)
    assert result.exit_code == 1
    assert result.stderr == said


def test_an_error_of_others_is_not_told_as_ours():
    with pytest.raises(KeyError), console.told_errors():
        raise KeyError("x")


def test_nan_is_not_printed_as_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.emit_json({"x": float("nan")})


def test_table_in_a_pipe_is_not_cut_and_has_no_colours(capsys):
    console.console().print("[bold]" + "word " * 25 + "end[/bold]")
    said = capsys.readouterr().out
    assert said == "word " * 25 + "end\n"


def test_console_can_go_to_stderr(capsys):
    console.console(stderr=True).print("x")
    assert capsys.readouterr() == ("", "x\n")


def test_bundle_that_is_named(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "b")
    assert console.chosen_bundle(bundle.path) == bundle
    assert capsys.readouterr() == ("", "")


def test_newest_bundle_is_said(tmp_path, monkeypatch, capsys):
    write_bundle(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert console.chosen_bundle(None).name == "b"
    assert capsys.readouterr() == ("", "using b (2026-01-01T00:00:00)\n")


@pytest.mark.parametrize("named", [True, False])
def test_chosen_bundle_is_verified_where_asked(tmp_path, monkeypatch, named):
    bundle = write_bundle(tmp_path / "b")
    data = bytearray(bundle.model.read_bytes())
    data[-1] ^= 1
    bundle.model.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    path = bundle.path if named else None
    assert console.chosen_bundle(path)
    with pytest.raises(BundleError, match="sha256 is not the one"):
        console.chosen_bundle(path, verify=True)


def test_progress_in_a_pipe_is_plain_lines_on_stderr(capsys):
    with console.progress() as shown:
        shown.step("tracing")
        shown.advance()
        shown.step("proving", total=3)
        shown.advance(2)
    assert capsys.readouterr() == ("", "tracing ...\nproving ...\n")


def test_progress_on_a_terminal_is_live(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress() as shown:
        shown.step("tracing")
        shown.step("proving", total=3)
        shown.advance(2)
        shown._live.refresh()
    assert "proving" in terminal.getvalue()
    assert "2/3" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_step_reaches_what_is_done_all_told(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress() as shown:
        shown.reach(1)  # of no step
        shown.step("building", total=100)
        shown.reach(40)
        shown.reach(70)
        shown._live.refresh()
    assert "70/100" in terminal.getvalue()
    console.Progress().reach(1)  # not shown

import json
import logging
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

import tfx
from tfx import cli
from tfx.errors import BundleError
from tfx.extras import DISTRIBUTION, EXTRAS, install_hint, need, version_of


def run(*arguments):
    return CliRunner().invoke(cli.main, arguments)


def tfx_process(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "tfx", *arguments], capture_output=True, text=True, **options
    )


@pytest.fixture
def raising(monkeypatch):
    """Make ``tfx doctor`` raise the error it is given."""

    def plant(error):
        @click.command("doctor")
        def command():
            raise error

        monkeypatch.setattr(cli.Root, "get_command", lambda self, context, name: command)

    yield plant
    logging.getLogger("tfx").setLevel(logging.NOTSET)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(flag):
    result = run(flag)
    assert result.exit_code == 0
    for name, summary in cli.SUMMARIES.items():
        assert name in result.stdout
        assert summary.split()[0] in result.stdout


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"tfx, version {tfx.__version__}\n")


def test_our_error_is_one_message_a_hint_and_exit_code_1(raising):
    raising(BundleError("it is damaged:\n  a: missing", hint="Make it again."))
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: it is damaged:\n  a: missing\nhint: Make it again.\n"


def test_error_without_a_hint(raising):
    raising(BundleError("it is damaged"))
    assert run("doctor").stderr == "error: it is damaged\n"


def test_verbose_shows_where_it_was_raised(raising):
    raising(BundleError("it is damaged"))
    stderr = run("-v", "doctor").stderr
    assert "Traceback" in stderr
    assert stderr.endswith("error: it is damaged\n")


def test_foreign_error_is_not_hidden(raising):
    raising(ZeroDivisionError("ours to fix"))
    result = run("doctor")
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["inspect", "--nonsense"], ["export"], ["--nonsense"]]
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("slip", "meant"), [("exprot", "export"), ("benchmark", "bench")])
def test_slip_names_the_command_that_is_near(slip, meant):
    result = run(slip)
    assert result.exit_code == 2
    assert f"No such command '{slip}'. Did you mean: {meant}?" in result.stderr


def test_every_summary_fits_on_a_line_of_a_terminal():
    listed = run("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(cli.SUMMARIES)


def test_process_exits_with_the_code(tmp_path):
    done = tfx_process("inspect", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: no bundle in {tmp_path}\n"
        "hint: Make one with: tfx export minilm, or name a bundle's folder.\n"
    )


def test_reader_that_goes_away_is_no_traceback(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    read, write = os.pipe()
    os.close(read)  # as `| head` does, and nothing has been written yet
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "tfx", "inspect", bundle.path, "--no-graph", "--json"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == ""


def test_what_is_left_out_is_said(tmp_path):
    write_bundle(tmp_path / "good")
    write_bundle(tmp_path / "bad").model.unlink()
    done = tfx_process("inspect", "--no-graph", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: bundle bad is damaged" in done.stderr


# Optional dependencies


def test_module_that_is_not_installed_says_which_extra(monkeypatch):
    monkeypatch.setitem(EXTRAS, "no_such_module", "gpu")
    with pytest.raises(tfx.TfxError, match="no_such_module is not installed") as caught:
        need("no_such_module")
    assert caught.value.hint == f"Run: pip install '{DISTRIBUTION}[gpu]'"


def test_module_without_an_extra():
    assert install_hint("somewhere.module") == "Run: pip install somewhere.module"


def test_module_that_lacks_another(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(tfx.TfxError) as caught:
        need("half_there")
    assert str(caught.value) == "half_there is installed but needs no_such_module, which is not"
    assert caught.value.hint == "Run: pip install no_such_module"


@pytest.mark.parametrize("error", ["ImportError('wrong ABI')", "OSError('libcuda.so.1 missing')"])
def test_module_that_does_not_import(tmp_path, monkeypatch, error):
    name = f"broken_{len(error)}"
    (tmp_path / f"{name}.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(tfx.TfxError, match=f"{name} is installed but does not import: ") as caught:
        need(name)
    assert caught.value.hint == f"Reinstall it: pip install --force-reinstall {name}"


@pytest.mark.parametrize(
    "arguments",
    [["export", "minilm"], ["quantize", "b", "--fp16"], ["build", "b", "--gpu", "sm89"]],
    ids=lambda arguments: arguments[0],
)
def test_a_plain_install_says_what_a_command_needs(arguments, tmp_path):
    """Modules that rewrite graphs begin with the library that they do it with."""
    write_bundle(tmp_path / "b")
    code = "import sys; sys.modules['onnx_ir'] = None; from tfx.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr == (
        "error: onnx_ir is not installed\nhint: Run: pip install 'tfx-toolkit[export]'\n"
    )
    assert done.returncode == 1


def test_a_plain_install_shows_all_of_a_bundle_but_its_graph(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    for option in ((), ("--json",)):
        result = run("inspect", str(bundle.path), *option)
        assert result.exit_code == 0
        assert result.stderr == (
            "graph left out, as by --no-graph: onnx_ir is not installed "
            "(Run: pip install 'tfx-toolkit[export]')\n"
        )
        assert bundle.manifest.signature.inputs[0].name in result.stdout
    assert "graph" not in json.loads(result.stdout)


@pytest.mark.parametrize("name", ["export_bundle", "quantize_bundle"])
def test_a_plain_install_says_what_a_public_name_needs(name):
    code = f"import sys; sys.modules['onnx_ir'] = None; import tfx; tfx.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("tfx.errors.BackendError: onnx_ir is not installed\n")


def test_a_module_that_nothing_names_is_no_error_of_ours(raising):
    raising(ModuleNotFoundError("No module named 'nonsense'", name="nonsense"))
    assert isinstance(run("doctor").exception, ModuleNotFoundError)


def test_version_of_what_is_not_installed():
    assert version_of("no-such-distribution") is None
    assert version_of("numpy")


def test_unknown_attribute_of_the_package():
    with pytest.raises(AttributeError, match="module 'tfx' has no attribute 'nonsense'"):
        tfx.nonsense  # noqa: B018

"""The rules of the house that no linter knows."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tfx
from tfx.cli import COMMANDS, SUMMARIES, main
from tfx.extras import EXTRAS
from tfx.runtime.backend import BACKENDS, find_backend

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "tokenizers")
MAX_LINES = 500


def modules():
    """Import name and file of every module we ship."""
    for name, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):  # does not follow the links in src/tfx
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((name, *(part for part in parts if part != "__init__"))), path


MODULES = dict(modules())


def absolute_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def imports_on_load(path):
    """Modules imported when the file is, as opposed to when a function of it runs."""
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)


def committed_files():
    """Files git tracks, or every file of an unpacked sdist."""
    try:
        listed = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def loaded_by(code):
    """Top-level modules a fresh interpreter has after running ``code``."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_every_package_is_listed_for_the_wheel():
    found = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)


def test_every_folder_of_modules_is_a_package():
    for path in MODULES.values():
        assert (path.parent / "__init__.py").is_file(), path


@pytest.mark.parametrize("name", sorted(FOLDERS.keys() - {"tfx"}))
def test_link_for_type_checkers(name):
    link = ROOT / "src" / name.replace(".", "/")
    if not link.is_symlink():
        pytest.skip("no links here: unpacked from an sdist, or without core.symlinks")
    assert link.resolve() == FOLDERS[name]
    excluded = PROJECT["tool"]["ruff"]["extend-exclude"]
    assert link.relative_to(ROOT).as_posix() in excluded


def test_no_link_leads_nowhere():
    for path in (ROOT / "src" / "tfx").iterdir():
        assert path.exists(), path


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_no_import_by_folder_name(path):
    """`import runtime` would load a second copy of every class."""
    names = {folder.name for folder in FOLDERS.values()} - {"tfx"}
    assert not names & {module.partition(".")[0] for module in absolute_imports(path)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_are_relative_inside_a_folder(name):
    """Else a checker that looks at the real file sees every class twice."""
    folder = max((f for f in FOLDERS if (name + ".").startswith(f + ".")), key=len)
    others = tuple(f"{f}." for f in FOLDERS if f not in ("tfx", folder))
    for module in absolute_imports(MODULES[name]):
        if not module.startswith("tfx") or (module + ".").startswith(others):
            continue
        if folder == "tfx":
            # Only `from tfx.x import` inside the core itself would be its own folder.
            pytest.fail(f"{name} imports {module}; write it relative")
        assert not (module + ".").startswith(f"{folder}."), f"write {module} relative"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.startswith("tfx.runtime")))
def test_runtime_loads_no_framework(name):
    roots = {module.partition(".")[0] for module in imports_on_load(MODULES[name])}
    assert not roots & {*EXTRAS}, "import it inside the function that needs it, with need()"


def test_files_stay_readable():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert not {name: count for name, count in lengths.items() if count > MAX_LINES}


def test_no_function_hides_a_subpackage():
    for module in pkgutil.iter_modules(tfx.__path__):
        value = getattr(tfx, module.name, None)
        assert value is None or value.__name__ == f"tfx.{module.name}"


def test_importing_tfx_loads_only_itself():
    assert not loaded_by("import tfx") & {*HEAVY, "numpy", "click", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"]])
def test_the_group_loads_nothing_heavy(arguments):
    code = f"from tfx.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass"
    assert not loaded_by(code) & {*HEAVY, "numpy", "rich"}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_loads_nothing_heavy(name):
    code = f"from tfx.cli import main\ntry: main([{name!r}, '--help'])\nexcept SystemExit: pass"
    assert not loaded_by(code) & {*HEAVY, "rich"}


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_the_commands_own(name):
    command = main.get_command(None, name)
    assert command.help.partition("\n")[0] == SUMMARIES[name]
    assert command.name == name


def test_every_command_has_a_summary():
    assert list(SUMMARIES) == list(COMMANDS)


@pytest.mark.parametrize("name", tfx.__all__)
def test_public_name_is_documented(name):
    value = getattr(tfx, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_public_names_are_those_type_checkers_see():
    tree = ast.parse((ROOT / "src/tfx/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen | {"__version__"} == set(tfx.__all__)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_a_module_shows_is_documented(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), name
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            # A dataclass without a docstring is given its own call as one.
            lacking = (value.__doc__ or f"{attribute}(").startswith(f"{attribute}(")
            assert not lacking, f"{name}.{attribute} has no docstring"


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_exists_and_has_tests(name):
    assert isinstance(find_backend(name).missing(), str)
    module = BACKENDS[name].partition(":")[0].rpartition(".")[2]
    found = [path.name for path in (ROOT / "tests/runtime").glob(f"test_*{module}*.py")]
    assert found, f"no tests/runtime/test_*{module}*.py"


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_every_extra_that_is_hinted_exists(module, extra):
    assert extra in PROJECT["project"]["optional-dependencies"], module


def test_core_contract_names_every_core_module():
    (contract,) = (
        c
        for c in PROJECT["tool"]["importlinter"]["contracts"]
        if c["name"] == "the core imports no folder"
    )
    core = {f"tfx.{path.stem}" for path in FOLDERS["tfx"].glob("*.py")} - {"tfx.__init__"}
    assert set(contract["source_modules"]) == core
    assert set(contract["forbidden_modules"]) == FOLDERS.keys() - {"tfx"}


def test_every_test_file_has_its_own_name():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "importlib mode cannot tell them apart"


def test_no_file_names_a_machine():
    """A path of one machine is of no use, or worse, on another."""
    # Put together here so that this file does not find itself.
    folders = "|".join(("tmp", "work", "root", "opt"))
    pattern = re.compile(rf"(?<![\w.<>{{}}$~-])/({folders})/\w")
    found = []
    for path in committed_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a model or another binary
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found

"""Optional libraries: found, or said how to get; and none that sends what it is used for."""

import importlib
import os
import subprocess
import sys

import pytest

from tfx import extras
from tfx.errors import BackendError
from tfx.extras import POSTPONED, SENDERS, SENDS_NOT, need


def test_a_library_that_is_there():
    assert need("json").dumps({}) == "{}"


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"^openvino is not installed$") as caught:
        need("openvino")
    assert caught.value.hint == "Run: pip install 'tfx-toolkit[openvino]'"


def test_openvino_is_loaded_without_what_sends_for_it():
    code = (
        "import sys; from tfx.extras import need; openvino = need('openvino');"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("said", [None, "0"], ids=["nothing", "said by the user"])
def test_what_is_loaded_is_told_to_send_nothing(said, tmp_path, monkeypatch):
    (tmp_path / "library_y.py").write_text(f"import os\nsaid = os.environ.get({SENDS_NOT!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(SENDS_NOT, raising=False)
    if said:
        monkeypatch.setenv(SENDS_NOT, said)
    try:
        assert need("library_y").said == (said or "1")
    finally:
        sys.modules.pop("library_y", None)
    assert os.environ.get(SENDS_NOT) == said


def test_it_is_told_until_the_last_import_of_several_threads_ends(monkeypatch):
    monkeypatch.delenv(SENDS_NOT, raising=False)
    first, second = extras._untold(), extras._untold()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ[SENDS_NOT] == "1"
    second.__exit__(None, None, None)
    assert SENDS_NOT not in os.environ


def test_onnxruntime_keeps_nothing_to_send(tmp_path):
    pytest.importorskip("onnxruntime")
    code = (
        "from tfx.extras import need; ort = need('onnxruntime');"
        "from onnx import parser;"
        'text = \'<ir_version: 10, opset_import: ["" : 23]> '
        "g (float[2] x) => (float[2] y) { y = Neg(x) }';"
        "ort.InferenceSession(parser.parse_model(text).SerializeToString(),"
        " providers=['CPUExecutionProvider'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != SENDS_NOT}
    subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        check=True,
    )
    assert os.listdir(tmp_path) == []


@pytest.fixture
def sender(tmp_path, monkeypatch):
    """A library that imports what sends for it, if it is there."""
    (tmp_path / "library_x.py").write_text(
        "try:\n    import sender_x\n    sends = True\nexcept ImportError:\n    sends = False\n"
    )
    (tmp_path / "sender_x.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SENDERS, "library_x", "sender_x")
    yield
    for name in ("library_x", "sender_x"):
        sys.modules.pop(name, None)


def test_what_sends_seems_absent_only_while_the_library_loads(sender):
    assert need("library_x").sends is False
    assert "sender_x" not in sys.modules
    assert need("sender_x").__name__ == "sender_x"


def test_what_others_loaded_before_stays_loaded(sender):
    before = need("sender_x")
    assert need("library_x").sends is True
    assert sys.modules["sender_x"] is before


def test_openvino_is_loaded_without_its_converter_until_someone_asks_for_it():
    code = (
        "import sys; from tfx.extras import need; openvino = need('openvino');"
        "early = 'openvino.tools.ovc' in sys.modules;"
        "from openvino import convert_model;"
        "print(early, openvino.convert_model.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False openvino.tools.ovc.convert\n", done.stderr


@pytest.fixture
def passing_on(tmp_path, monkeypatch):
    """A library that passes on a name of another module, if that is there."""
    (tmp_path / "library_y.py").write_text(
        "try:\n    from converter_y import convert\nexcept ImportError:\n    pass\n"
    )
    (tmp_path / "converter_y.py").write_text("convert = 'converted'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(POSTPONED, "library_y", ("converter_y", "convert"))
    yield
    for name in ("library_y", "converter_y"):
        sys.modules.pop(name, None)


def test_what_is_postponed_is_imported_when_asked_for(passing_on):
    library = need("library_y")
    assert "converter_y" not in sys.modules
    assert library.convert == "converted"
    assert vars(library)["convert"] == "converted"  # from now on without a detour
    with pytest.raises(AttributeError, match=r"^module 'library_y' has no attribute 'other'$"):
        _ = library.other


def test_of_a_library_that_is_loaded_nothing_seems_absent(passing_on, monkeypatch):
    seen, real = [], importlib.import_module

    def watched(name):
        seen.append("converter_y" in sys.modules)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", watched)
    need("library_y")
    need("library_y")
    assert seen == [True, False]  # None stands for it while the library loads


def test_a_library_that_others_loaded_is_left_as_it_is(passing_on):
    import library_y

    assert need("library_y") is library_y
    assert "__getattr__" not in vars(library_y)

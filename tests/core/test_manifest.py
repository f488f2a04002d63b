import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import manifest
from support.errors import lines_of

from tfx.errors import BundleError
from tfx.manifest import SCHEMA_VERSION, FileEntry, Manifest, Parent, is_contained
from tfx.processing import (
    Activation,
    Classification,
    Embedding,
    Pooling,
    Processing,
    Tokenization,
)
from tfx.recipe import ExportRecipe
from tfx.report import Check, OutputError, ParityReport

WHOLE = manifest(
    files=(FileEntry("model.onnx", 3, "0" * 64), FileEntry("a/tokenizer.json", 5, "1" * 64)),
    recipe=ExportRecipe(dynamic={"x": ("batch", "")}, random_weights=True),
    processing=Processing(
        Tokenization("a/tokenizer.json", 32, pad_side="left"),
        Embedding("last_hidden_state", (Pooling.MEAN, Pooling.CLS), normalize=True),
        Classification("logits", ("no", "yes"), Activation.SIGMOID),
    ),
    parity=ParityReport(
        "torch", "onnxruntime", ("batch 2",), (OutputError("y", 1e-6, 2e-6, 1.0),),
        (Check("padded = unpadded", 4, 0.1, 1.0),),
    ),
    facts={"parameters": 512},
    notes=("one", "two"),
    parent=Parent("tiny", "2" * 64),
)  # fmt: skip


def refusal(text):
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text, where="b/tfx.json")
    return str(caught.value), caught.value.hint


def changed(**fields):
    return json.dumps(json.loads(WHOLE.to_json()) | fields)


def test_round_trip():
    assert Manifest.from_json(WHOLE.to_json(), where="") == WHOLE
    assert WHOLE.to_dict() == json.loads(WHOLE.to_json())


def test_schema_comes_first():
    assert WHOLE.to_json().startswith(f'{{\n  "schema": {SCHEMA_VERSION},\n  "name": ')


def test_text_of_any_language_stays_readable():
    assert "größe" in manifest(name="größe").to_json()


def test_nan_is_no_json():
    broken = ParityReport("a", "b", (), (), (Check("c", 1, float("nan"), 1.0),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest(parity=broken).to_json()


@pytest.mark.parametrize(
    "text", ["", "{", WHOLE.to_json()[:-30], "[" * 100_000, "9" * 5_000], ids=len
)
def test_text_that_is_no_json(text):
    message, hint = refusal(text)
    assert message.startswith("b/tfx.json is damaged: ")
    assert hint == "Make the bundle again."


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"schema": 0}', '{"schema": true}'])
def test_json_that_is_no_manifest(text):
    assert refusal(text)[0] == "b/tfx.json is not a bundle manifest: no schema version"


def test_newer_schema():
    message, hint = refusal('{"schema": 99, "from": "the future"}')
    assert message == f"b/tfx.json has schema 99, this version reads up to {SCHEMA_VERSION}"
    assert hint == "Upgrade: pip install --upgrade tfx-toolkit"


def test_missing_and_misspelt_fields_are_listed_together():
    document = json.loads(WHOLE.to_json())
    del document["task"], document["signature"]["inputs"][0]["dtype"]
    document["notez"] = []
    message, hint = refusal(json.dumps(document))
    assert lines_of(message) == [
        "b/tfx.json is damaged:",
        "  task: missing",
        "  signature.inputs[0].dtype: missing",
        "  notez: unknown",
    ]
    assert hint == "Make the bundle again."


ESCAPES = [
    "../x",
    "a/../../x",
    "a/..",
    "/etc/passwd",
    "//server/x",
    "..\\x",
    "a\\b",
    "C:/x",
    "C:x",
    "",
    ".",
    "./x",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "\ud800",
    "tfx.json",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_path_that_leaves_the_bundle(path):
    entry = {"path": path, "size_bytes": 3, "sha256": "0" * 64}
    message, hint = refusal(changed(files=[entry, *json.loads(WHOLE.to_json())["files"]]))
    assert lines_of(message) == [
        "b/tfx.json is not safe to open:",
        f"  {path!r}: path leaves the bundle",
    ]
    assert hint == "Do not use this bundle; ask where it came from."


@pytest.mark.parametrize("path", ["x", "a/b.onnx", "..x", "a/...", "größe.txt", "with space"])
def test_path_that_stays(path):
    assert is_contained(path)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "..."]), min_size=1, max_size=5))
def test_contained_paths_really_are(parts):
    path = "/".join(parts)
    depth = 0
    for part in parts:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            break
    if is_contained(path):
        assert depth > 0
        assert not path.startswith("/")


def test_file_listed_twice():
    files = json.loads(WHOLE.to_json())["files"]
    assert "'model.onnx': listed twice" in refusal(changed(files=[*files, files[0]]))[0]


@pytest.mark.parametrize("field", ["model", "processing"])
def test_file_used_and_not_listed(field):
    value = "other" if field == "model" else {"tokenization": {"file": "other", "max_length": 1}}
    assert "'other': used and not listed" in refusal(changed(**{field: value}))[0]


def test_model_outside_the_bundle():
    message, _ = refusal(changed(model="../model.onnx"))
    assert "'../model.onnx': used and not listed" in message


keys = st.sampled_from(list(json.loads(WHOLE.to_json())))
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(keys, junk, min_size=1, max_size=2))
def test_any_damage_is_a_bundle_error_or_harmless(fields):
    try:
        opened = Manifest.from_json(changed(**fields), where="")
    except BundleError:
        return
    assert isinstance(opened, Manifest)

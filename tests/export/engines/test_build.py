"""``tfx build``: an engine bundle from a bundle, with TensorRT-RTX and no GPU."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from click.testing import CliRunner
from support.bundles import TEXT_SIGNATURE, write_bundle
from support.proofs import write_proven_bundle
from support.texts import write_text_bundle

from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError, RecipeError
from tfx.export.engines import bundle as engine_bundle
from tfx.export.engines.bundle import build_bundle, name_of
from tfx.export.engines.profiles import profile_from_text
from tfx.export.engines.worker import build_apart
from tfx.manifest import SCHEMA_VERSION, Step
from tfx.quantization import Quantization, QuantizeRecipe
from tfx.recipe import EngineBuild, EngineRecipe, Source, SourceKind, Target
from tfx.runtime.engines import MODULES
from tfx.runtime.opening import open_session
from tfx.signature import ShapeRange

SM89 = EngineRecipe(gpus=("sm89",))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module", autouse=True)
def _library():
    pytest.importorskip(
        MODULES[Target.TENSORRT_RTX], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return write_proven_bundle(tmp_path_factory.mktemp("build") / "tiny")


@pytest.fixture(scope="module")
def built(parent):
    recipe = EngineRecipe(
        gpus=("sm80", "sm89"),
        profiles=({"batch": ShapeRange(1, 1, 1)}, {"sequence": ShapeRange(2, 4, 8)}),
    )
    return build_bundle(parent, parent.path.parent / "engine", recipe)


def test_it_is_a_child_that_says_what_it_needs(parent, built):
    manifest = built.manifest
    assert (manifest.step, manifest.parent) == (Step.BUILD, parent.as_parent())
    assert (manifest.model, manifest.precision) == ("model.engine", parent.manifest.precision)
    assert manifest.engine.gpus == ("sm80", "sm89")
    assert manifest.engine.version == manifest.tools[MODULES[Target.TENSORRT_RTX]]
    assert manifest.parity is None
    assert manifest.notes == ("not proved where it was built: run tfx check where it runs",)
    built.verify()


def test_its_signature_is_what_some_profile_takes(built):
    assert [dict(profile) for profile in built.manifest.engine.profiles] == [
        {"batch": ShapeRange(1, 1, 1), "sequence": TEXT_SIGNATURE.ranges["sequence"]},
        {"batch": TEXT_SIGNATURE.ranges["batch"], "sequence": ShapeRange(2, 4, 8)},
    ]
    assert built.manifest.signature.ranges == {
        "batch": ShapeRange(1, 1, 16),
        "sequence": ShapeRange(1, 16, 32),
    }


def test_it_has_the_parents_files_but_the_graph(parent, built):
    files = {entry.path for entry in parent.manifest.files} - {"model.onnx"} | {"model.engine"}
    assert {entry.path for entry in built.manifest.files} == files
    assert (built.path / "proof.npz").read_bytes() == (parent.path / "proof.npz").read_bytes()


def test_weights_beside_a_graph_and_variants_stay_behind(tmp_path):
    weights = {"model.onnx.data": b"", "model.fast.onnx": b"", "model.fast.onnx.data": b""}
    files = weights | {"tokenizer/vocabulary.txt": b"a"}
    bundle = write_bundle(tmp_path / "a", files=files, variants={"fast": "model.fast.onnx"})
    child = build_bundle(bundle, tmp_path / "b", SM89)
    assert {entry.path for entry in child.manifest.files} == {
        "model.engine",
        "tokenizer/vocabulary.txt",
    }
    assert child.manifest.variants == {}


def test_a_source_is_found_from_another_folder(tmp_path):
    source = Source(SourceKind.CHECKPOINT, "checkpoints/bert")
    bundle = write_bundle(tmp_path / "a", source=source)
    beside = build_bundle(bundle, tmp_path / "b", SM89)
    below = build_bundle(bundle, tmp_path / "engines" / "c", SM89)
    assert beside.manifest.source.location == "checkpoints/bert"
    assert below.manifest.source.location == "../checkpoints/bert"


def test_default_names(parent):
    assert name_of(parent, SM89) == "tiny-rtx-sm89"
    assert name_of(parent, EngineRecipe(Target.TENSORRT)) == "tiny-trt"


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        (
            (2, 0, 0),
            "attention is in float32, for which TensorRT has no fused kernel: quantize with --fp16 "
            "or --bf16, and build from that",
        ),
        ((6, 1, 0), "fused attention kernels in the engine: 1, for 6 attentions"),
        (
            (0, 0, 2),
            "2 attentions are spelled out: TensorRT takes no soft cap, nor queries or keys that "
            "two share",
        ),
    ],
)
def test_what_became_of_attention_is_noted(parent, tmp_path, monkeypatch, counts, note):
    def build_apart(bundle, recipe, plan, **rest):
        plan.write_bytes(b"plan")
        ranges = bundle.manifest.signature.ranges
        return EngineBuild(recipe, "1", ("sm89",), (ranges,), "", "", *counts)

    monkeypatch.setattr(engine_bundle, "build_apart", build_apart)
    built = build_bundle(parent, tmp_path / "b", SM89)
    assert built.manifest.notes == (
        note,
        "not proved where it was built: run tfx check where it runs",
    )


@pytest.mark.parametrize(
    ("recipe", "note"),
    [
        (QuantizeRecipe(DType.INT8), "quantize again with --rest fp16, or bf16"),
        (QuantizeRecipe(DType.INT8, rest=DType.FLOAT16), "of this type and head size"),
        (QuantizeRecipe(DType.FLOAT16), "of this type and head size"),
    ],
)
def test_floats_around_int8_may_be_shorter(recipe, note):
    build = EngineBuild(SM89, "1", ("sm89",), (), "", "", 2, 0, 0)
    assert engine_bundle._notes(build, recipe.precision, Quantization(recipe))[0].endswith(note)
    fused = EngineBuild(SM89, "1", ("sm89",), (), "", "", 2, 1, 0)
    (note, _) = engine_bundle._notes(fused, recipe.precision, Quantization(recipe))
    assert "for 2 attentions" in note


def test_an_engine_is_not_built_from_an_engine(built):
    with pytest.raises(BundleError, match="engine holds an engine, not a graph") as caught:
        build_bundle(built, None, SM89)
    assert caught.value.hint == "Build from its parent tiny."


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_backend_for_graphs_refuses_it(built, backend):
    pytest.importorskip(backend)
    with pytest.raises(BackendError, match=f"{backend} runs graphs, and .* holds an engine") as c:
        open_session(built, backend=backend)
    assert "backend='tensorrt'" in c.value.hint


def test_nothing_is_left_of_what_fails(parent, tmp_path):
    with pytest.raises(BackendError, match="not for sm90"):
        build_bundle(parent, tmp_path / "b", EngineRecipe(gpus=("sm90",)))
    with pytest.raises(RecipeError, match="no input has an axis 'heads'"):
        build_bundle(
            parent, tmp_path / "b", EngineRecipe(profiles=({"heads": ShapeRange(1, 1, 1)},))
        )
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_parent_is_not_built(tmp_path):
    bundle = write_bundle(tmp_path / "a")
    data = bytearray(bundle.model.read_bytes())
    data[-1] ^= 1
    bundle.model.write_bytes(data)
    with pytest.raises(BundleError, match=r"model.onnx: sha256 is not the one in tfx\.json"):
        build_bundle(bundle, tmp_path / "b", SM89)


def test_a_library_that_ends_its_process(parent, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho bad luck >&2\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(BackendError) as caught:
        build_apart(parent, SM89, tmp_path / "plan")
    assert str(caught.value).startswith(
        "tensorrt-rtx ended its process while it built tiny: signal 11, "
    )


GPUS = "sm80,sm86,sm89,sm120"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_build_that_is_ended_leaves_nothing(parent, tmp_path, number, code):
    process = subprocess.Popen(
        # Several GPUs, or it may be done before it hears of it.
        [sys.executable, "-m", "tfx", "build", parent.path, "--gpu", GPUS, "-o", "b"],
        # What a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if line.startswith("building"):
            break
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".tfx-"]
    time.sleep(0.2)
    (child,) = psutil.Process(process.pid).children()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the child, too
    else:
        process.send_signal(number)
    rest = process.communicate()[1]
    assert process.returncode == code
    assert not child.is_running()
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_the_command(parent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("build", parent.path, "--gpu", "SM89,sm120", "--shapes", "batch=1..4,sequence=8")
    assert result.exit_code == 0, result.stderr
    assert "building the engine with tensorrt-rtx ..." in result.stderr
    assert "tensorrt-rtx 1" in result.stdout
    assert "for sm89, sm120" in result.stdout
    assert "profiles   batch 1..4..4, sequence 8..8..8" in result.stdout
    bundle = open_bundle("tiny-rtx-sm89-sm120")
    assert bundle.manifest.engine.recipe.gpus == ("sm89", "sm120")
    again = run("build", parent.path, "--gpu", "sm89,sm120")
    assert (again.exit_code, "already holds a bundle" in again.stderr) == (1, True)


def test_the_command_as_json_and_inspect(parent, tmp_path):
    result = run("build", parent.path, "--gpu", "sm89", "-o", tmp_path / "b", "--json")
    document = json.loads(result.stdout)
    assert document["bundle"] == str(tmp_path / "b")
    assert (document["schema"], document["step"]) == (SCHEMA_VERSION, "build")
    assert document["engine"]["recipe"] == {"gpus": ["sm89"]}
    shown = run("inspect", tmp_path / "b")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "engine     tensorrt-rtx" in shown.stdout
    fusion = run("inspect", tmp_path / "b", "--fusion")
    assert "holds an engine, which has no graph to read" in fusion.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "ada"], "gpu is 'ada', expected a compute capability"),
        (["--gpu", "sm89", "--hardware-compatible"], "tensorrt-rtx cannot build so: its engines"),
        (["--target", "tensorrt", "--gpu", "sm89"], "tensorrt cannot build so"),
    ],
)
def test_errors_of_the_command(parent, tmp_path, arguments, said):
    result = run("build", parent.path, "-o", tmp_path / "b", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workspace", "lots"], "'lots' is no size, expected bytes, or 512M, or 4G"),
        (["--shapes", "batch"], "'batch' is no range of an axis, expected AXIS=MIN..OPT..MAX"),
        (["--shapes", "batch=4..1"], "need 1 <= min <= opt <= max"),
        (["--shapes", "batch=1,batch=2"], "axis 'batch' is given twice"),
    ],
)
def test_wrong_usage(parent, arguments, said):
    result = run("build", parent.path, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_workspace_units(parent, tmp_path):
    result = run(
        "build", parent.path, "-o", tmp_path / "b", "--gpu", "sm89", "--workspace", "2g", "--json"
    )
    assert json.loads(result.stdout)["engine"]["recipe"]["workspace_bytes"] == 2 << 30


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("batch=8", {"batch": ShapeRange(8, 8, 8)}),
        ("batch=1..8", {"batch": ShapeRange(1, 8, 8)}),
        (" batch = 1..2..8 , s=3", {"batch": ShapeRange(1, 2, 8), "s": ShapeRange(3, 3, 3)}),
    ],
)
def test_profiles_as_they_are_typed(text, sizes):
    assert profile_from_text(text) == sizes


def test_a_tokenizer_comes_along(tmp_path):
    bundle = write_text_bundle(tmp_path / "a")
    child = build_bundle(bundle, tmp_path / "b", SM89)
    assert child.manifest.processing == bundle.manifest.processing
    assert (child.path / "tokenizer.json").is_file()

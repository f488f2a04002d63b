"""Quantized bundles: what they carry, who opens them, and that all of it is written or nothing."""

import dataclasses
import errno
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx.checker import check_model

import tfx
from tfx.bundle import create_bundle, open_bundle
from tfx.cli import main
from tfx.dtypes import DType
from tfx.errors import BundleError, ParityError, QuantizeError, RecipeError
from tfx.export.engines.engine import build_engine
from tfx.extras import need
from tfx.manifest import Step
from tfx.quantization import ORT_CPU, QuantizeRecipe, WeightMethod
from tfx.quantize import lowering
from tfx.quantize.calibration import calibration_texts
from tfx.quantize.pipeline import PROOF_FEEDS, default_path, quantize_bundle
from tfx.recipe import EngineRecipe, Target
from tfx.report import Check, ParityReport
from tfx.runtime.backends.openvino import CAPABILITIES
from tfx.runtime.compare import TOLERANCES, scaled_error
from tfx.runtime.engines import MODULES
from tfx.runtime.proof import load_cases
from tfx.signature import ShapeRange

RECIPES = {
    "fp16": QuantizeRecipe(DType.FLOAT16),
    "bf16": QuantizeRecipe(DType.BFLOAT16),
    "int8": QuantizeRecipe(DType.INT8),
    "int8-dynamic": QuantizeRecipe(DType.INT8, dynamic=True),
    "fp8": QuantizeRecipe(DType.FLOAT8_E4M3),
    "int8-fp16": QuantizeRecipe(DType.INT8, rest=DType.FLOAT16),
    "fp8-fp16": QuantizeRecipe(DType.FLOAT8_E4M3, rest=DType.FLOAT16),
    "int4-bf16": QuantizeRecipe(DType.INT4, rest=DType.BFLOAT16),
    "int4": QuantizeRecipe(DType.INT4),
}
# Largest file of weights beside one of float32; what is small stays in float32, and 8-bit floats
# leave tables there, too.
WEIGHTS = {
    "fp16": 0.55,
    "bf16": 0.55,
    "int8": 0.3,
    "int8-dynamic": 0.3,
    "fp8": 0.4,
    "int8-fp16": 0.28,
    "fp8-fp16": 0.35,
    "int4-bf16": 0.2,
    "int4": 0.3,
}


@pytest.fixture(scope="module")
def data(classifier, samples):
    return calibration_texts(classifier, samples, name="data.txt")


@pytest.fixture(scope="module", params=RECIPES)
def child(request, classifier, data, tmp_path_factory):
    """A bundle in each precision, far from its parent."""
    recipe = RECIPES[request.param]
    return quantize_bundle(
        classifier,
        tmp_path_factory.mktemp("far") / "away" / request.param,
        recipe=recipe,
        data=data if recipe.needs_calibration else None,
    )


def close(child, reference, found):
    return all(
        scaled_error(reference[name], found[name])
        <= TOLERANCES[child.manifest.precision].scaled_error
        for name in reference
    )


def test_the_manifest_says_where_it_comes_from(child, classifier):
    manifest = child.manifest
    recipe = manifest.quantization.recipe
    asked = RECIPES[child.path.name]
    assert dataclasses.replace(recipe, method=asked.method, percentile=asked.percentile) == asked
    assert (recipe.method is not None) == recipe.needs_calibration
    assert manifest.step is Step.QUANTIZE
    assert manifest.precision is recipe.precision
    assert manifest.parent == classifier.as_parent()
    assert manifest.signature == classifier.manifest.signature
    assert manifest.processing == classifier.manifest.processing
    assert manifest.quantization.quantized > 0
    assert manifest.parity.passed
    assert {"onnx", "onnxruntime", "tfx-toolkit"} <= manifest.tools.keys()
    assert (manifest.quantization.calibration is None) == (not recipe.needs_calibration)
    has_form = recipe.precision is not DType.FLOAT8_E4M3 or recipe.rest is not DType.FLOAT32
    assert (ORT_CPU in manifest.variants) == has_form
    statistics = recipe.needs_calibration
    assert (child.path / "calibration.npz").is_file() == statistics


def test_the_source_is_found_from_where_the_bundle_lies(child, classifier):
    location = child.manifest.source.location
    assert not location.startswith("/")
    found = child.manifest.source.found_from(child.path.parent).location
    assert found == classifier.manifest.source.found_from(classifier.path.parent).location


def test_the_graph_is_valid_and_its_weights_are_small(child, classifier):
    check_model(str(child.model), full_check=True)
    weights = (child.path / "model.onnx.data").stat().st_size
    assert weights <= WEIGHTS[child.path.name] * 4 * classifier.manifest.facts["parameters"]
    for graph in child.path.glob("*.onnx"):  # a form reads the weights of the portable graph
        loaded = onnx.load(graph, load_external_data=False)
        assert all(
            entry.value == "model.onnx.data"
            for tensor in loaded.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        )
        assert sum(len(tensor.raw_data) for tensor in loaded.graph.initializer) < 2**15


def test_onnx_runtime_opens_it(child, classifier, samples):
    with (
        tfx.open_session(classifier, backend="onnxruntime") as parent,
        tfx.open_session(child, backend="onnxruntime") as session,
    ):
        for case in load_cases(classifier.path / "proof.npz")[:2]:
            assert close(child, parent.predict(case.feed), session.predict(case.feed))
        one, two = parent.predict(samples), session.predict(samples)
        agreed = np.mean([a.label == b.label for a, b in zip(one, two, strict=True)])
        assert agreed > 0.8


def test_openvino_opens_it(child, classifier):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'tfx-toolkit[openvino]'")
    able = need("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if child.manifest.precision is DType.BFLOAT16 and CAPABILITIES[DType.BFLOAT16] not in able:
        pytest.skip("this CPU has no bfloat16")
    # It refuses to multiply in a type that the CPU does not have.
    precision = "fp32" if child.manifest.precision is DType.FLOAT16 else ""
    with (
        tfx.open_session(classifier, backend="onnxruntime") as parent,
        tfx.open_session(child, backend="openvino", precision=precision) as session,
    ):
        for case in load_cases(classifier.path / "proof.npz")[:2]:
            assert close(child, parent.predict(case.feed), session.predict(case.feed))


def test_openvino_opens_weights_with_zero_points(classifier, tmp_path):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'tfx-toolkit[openvino]'")
    recipe = QuantizeRecipe(DType.INT4, weight_method=WeightMethod.HQQ)
    child = quantize_bundle(classifier, tmp_path / "hqq", recipe=recipe)
    with tfx.open_session(child, backend="openvino") as session:
        assert session.report.facts.precision is DType.INT4


def test_tensorrt_builds_it(child):
    pytest.importorskip(
        MODULES[Target.TENSORRT_RTX], reason="needs TensorRT-RTX: pip install 'tfx-toolkit[rtx]'"
    )
    profile = {"batch": ShapeRange(1, 4, 8), "sequence": ShapeRange(1, 16, 32)}
    engine = build_engine(child, EngineRecipe(gpus=("sm89", "sm120"), profiles=(profile,)))
    assert engine.build.attention == 2
    assert len(engine.plan) > 0
    # Floats of 16 bits keep attention in one kernel, whatever the products around it are.
    recipe = child.manifest.quantization.recipe
    halves = {DType.FLOAT16, DType.BFLOAT16}
    assert bool(engine.build.fused_kernels) == bool(halves & {recipe.precision, recipe.rest})


def test_it_checks(child):
    result = CliRunner().invoke(main, ["check", str(child.path)])
    assert result.exit_code == 0, result.output


def test_it_is_judged_on_the_feeds_that_calibrated_it(child, data):
    cases = load_cases(child.path / "proof.npz")
    if child.manifest.quantization.calibration is None:
        assert child.manifest.parity.reference.startswith("stored outputs of torch")
        return
    assert child.manifest.parity.reference == "tiny float32, on feeds of data.txt"
    assert len(cases) == min(PROOF_FEEDS, len(data))
    given = [feed["input_ids"].tobytes() for feed in data]
    assert all(case.feed["input_ids"].tobytes() in given for case in cases)


def test_the_same_recipe_and_parent_give_the_same_graph(classifier, data, tmp_path):
    for name in ("one", "two"):
        quantize_bundle(classifier, tmp_path / name, recipe=RECIPES["int8"], data=data)
    for name in ("model.onnx", "model.onnx.data", "calibration.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_source_from_the_root_stays(classifier, tmp_path):
    parent = tmp_path / "from-the-root"
    shutil.copytree(classifier.path, parent)
    text = (parent / "tfx.json").read_text()
    (parent / "tfx.json").write_text(text.replace('"location": "from"', '"location": "/models/x"'))
    child = quantize_bundle(
        open_bundle(parent), tmp_path / "a" / "child", recipe=RECIPES["int8-dynamic"]
    )
    assert child.manifest.source.location == "/models/x"


@pytest.mark.parametrize("name", ["fp16", "int8", "int8-dynamic", "fp8", "int8-fp16"])
def test_a_name_beside_the_parent(name, classifier):
    path = default_path(classifier, RECIPES[name])
    assert path == classifier.path.with_name(f"tiny-{name}")


def test_an_engine_is_no_parent(classifier, tmp_path):
    with create_bundle(tmp_path / "engine") as staging:
        for entry in classifier.manifest.files:
            shutil.copyfile(classifier.path / entry.path, staging.path / entry.path)

        staging.finish(
            dataclasses.replace(classifier.manifest, step=Step.BUILD, parent=classifier.as_parent())
        )
    with pytest.raises(RecipeError, match=r"engine is an engine, expected a float32 export$"):
        quantize_bundle(
            open_bundle(tmp_path / "engine"), tmp_path / "to", recipe=RECIPES["int8-dynamic"]
        )


def nothing_left(folder):
    return list(folder.iterdir()) == []


def test_an_interrupt_leaves_nothing(classifier, data, tmp_path):
    def stop(what, done, total):
        if what == "histograms":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(classifier, tmp_path / "x", recipe=RECIPES["int8"], data=data, on_pass=stop)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    "step", ["calibrating", "lowering the graph", "writing the graph", "comparing with the parent",
             "measuring what it costs", "writing the bundle"]
)  # fmt: skip
def test_an_interrupt_at_any_step_leaves_nothing(step, classifier, data, tmp_path):
    def stop(words):
        if words == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(classifier, tmp_path / "x", recipe=RECIPES["fp8"], data=data, on_step=stop)
    assert nothing_left(tmp_path)


def test_a_full_disk_leaves_nothing(classifier, data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lowering, "store_statistics", full)
    with pytest.raises(BundleError) as caught:
        quantize_bundle(classifier, tmp_path / "x", recipe=RECIPES["int8"], data=data)
    assert str(caught.value) == f"no space left to write bundle {tmp_path / 'x'}"
    assert nothing_left(tmp_path)


def test_a_budget_that_leaves_nothing_to_lower(classifier, data, tmp_path):
    with pytest.raises(QuantizeError) as caught:
        quantize_bundle(
            classifier,
            tmp_path / "x",
            recipe=RECIPES["int8"],
            data=data,
            search=lambda lowering, _: lowering.groups,
        )
    assert str(caught.value).endswith(" would be int8: every group costs too much")
    assert caught.value.hint == "Allow a larger --max-drop."
    assert nothing_left(tmp_path)


def test_outputs_too_far_from_the_parent(classifier, tmp_path, monkeypatch):
    report = ParityReport("", "", (), (), (Check("parity", 2, 0.7, 0.5),))
    monkeypatch.setattr("tfx.quantize.pipeline.check_bundle", lambda *_, **__: report)
    with pytest.raises(ParityError) as caught:
        quantize_bundle(classifier, tmp_path / "x", recipe=RECIPES["int8-dynamic"])
    assert str(caught.value) == "parity: error 7.0e-01, allowed 5e-01 for int8"
    assert caught.value.hint.startswith("Keep more in float32 with --keep")
    assert nothing_left(tmp_path)

"""A causal language model with its cache, in every precision: proved, generating, measured."""

import numpy as np
import pytest
from support.generators import write_generator

import tfx
from tfx.dtypes import DType
from tfx.export.pipeline import export_bundles
from tfx.quantization import QuantizeRecipe
from tfx.quantize.calibration import calibration_texts
from tfx.quantize.pipeline import quantize_bundle
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.evaluation import evaluate
from tfx.runtime.generation.kv_cache import text_signature
from tfx.runtime.parity import check_bundle
from tfx.runtime.proof import PROOF_FILE, load_cases

TEXTS = ["alpha beta gamma", "a model of two heads", "masks and heads", "delta of alpha and beta"]

# With the largest difference of logits, as a share of their largest.
RECIPES = {
    "int8": (QuantizeRecipe(DType.INT8, smooth=0.0), 0.2),
    "int8 dynamic": (QuantizeRecipe(DType.INT8, dynamic=True), 0.2),
    "int4": (QuantizeRecipe(DType.INT4, block_size=16), 0.6),
    "fp16": (QuantizeRecipe(DType.FLOAT16), 0.02),
    "bf16": (QuantizeRecipe(DType.BFLOAT16), 0.1),
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    source = write_generator(folder / "source")
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_child_generates_and_has_a_perplexity(parent, tmp_path, name):
    recipe, allowed = RECIPES[name]
    data = None
    if recipe.precision is DType.INT8 and not recipe.dynamic:
        data = calibration_texts(parent, TEXTS * 8, name="texts")
    child = quantize_bundle(parent, tmp_path / "child", recipe=recipe, data=data)
    assert child.manifest.signature == parent.manifest.signature
    assert child.manifest.processing == parent.manifest.processing
    assert check_bundle(child, backend="onnxruntime").passed
    inputs = {spec.name for spec in text_signature(child.manifest.signature).inputs}
    assert all(set(case.feed) == inputs for case in load_cases(child.path / PROOF_FILE))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    dataset = read_dataset(tmp_path / "texts.txt")
    values = []
    for bundle in (parent, child):
        with tfx.open_session(bundle, backend="onnxruntime") as session:
            (answer,) = session.predict(TEXTS[:1])
            found = session.generate(TEXTS, max_new_tokens=6)
            assert [len(one.ids) for one in found if one.finish == "length"] == [6] * sum(
                one.finish == "length" for one in found
            )
            values.append((answer["logits"], evaluate(session, dataset).value))
    (expected, perplexity), (logits, other) = values
    assert np.abs(logits - expected).max() <= allowed * np.abs(expected).max()
    assert other == pytest.approx(perplexity, rel=3 * allowed)
    assert not np.array_equal(logits, expected)

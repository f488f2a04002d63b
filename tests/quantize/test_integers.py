"""Calibrate once, lower any choice of groups: which steps are taken, and what is kept."""

import numpy as np
import pytest
from onnx.checker import check_model
from onnx_ir import to_proto
from support.graphs import fill_constants, graph_of, operators, run_ort

from tfx.dtypes import DType
from tfx.errors import QuantizeError, RecipeError
from tfx.quantization import CalibrationFacts, QuantizeRecipe, RangeMethod
from tfx.quantize.calibration import CalibrationData
from tfx.quantize.integers import lower, prepare, prepare_again
from tfx.runtime.compare import scaled_error

STATIC = QuantizeRecipe(DType.INT8)
PLAIN = QuantizeRecipe(DType.INT8, smooth=0)
DYNAMIC = QuantizeRecipe(DType.INT8, dynamic=True)


def block(rng, *, before="LayerNormalization <axis = -1> (x, gamma, beta)"):
    """A normalization, a Gemm and a product after it, with modules."""
    model = fill_constants(
        graph_of(
            "g (float[n, 32] x, float[32] gamma, float[32] beta, float[48, 32] w, float[48] b, "
            "float[48, 32] u) => (float[n, 32] y) "
            f"{{ h = {before}\n k = Gemm <transB = 1> (h, w, b)\n r = Relu(k)\n"
            "y = MatMul(r, u) }"
        ),
        rng,
    )
    for node in model.graph:
        scope = {"Gemm": "up", "MatMul": "down"}.get(node.op_type)
        if scope:
            node.metadata_props["scope"] = scope
    return model


def data_of(rng, *, outlier=1.0, batches=3):
    feeds = []
    for _ in range(batches):
        x = rng.normal(size=(64, 32)).astype(np.float32)
        x[:, 3] *= outlier
        feeds.append({"x": x})
    facts = CalibrationFacts("data.npz", "0" * 64, 64 * batches, 2048 * batches)
    return CalibrationData(facts, tuple(lambda feed=feed: dict(feed) for feed in feeds))


def error(lowered, model, data):
    (feed, *_) = data
    check_model(to_proto(lowered.model), full_check=True)
    return scaled_error(run_ort(model, feed)[0], run_ort(lowered.model, feed)[0])


def test_static_ranges(rng):
    data = data_of(rng)
    model = block(rng)
    before = model.clone()
    prepared = prepare(model, PLAIN, data)
    assert prepared.groups == ["up", "down"]
    assert sorted(prepared.statistics) == ["h", "r"]
    assert prepared.alpha == 0
    lowered = lower(prepared, PLAIN)
    assert (lowered.quantized, lowered.kept) == (2, ())
    assert operators(lowered.model).count("QuantizeLinear") == 2
    assert 0 < error(lowered, before, data) < 0.05


def test_dynamic_ranges_need_no_data(rng):
    prepared = prepare(block(rng), DYNAMIC, None)
    assert not prepared.statistics
    lowered = lower(prepared, DYNAMIC)
    assert lowered.quantized == 2
    assert "QuantizeLinear" not in operators(lowered.model)
    assert operators(lowered.model).count("DequantizeLinear") == 2


@pytest.mark.parametrize("before", ["LayerNormalization <axis = -1> (x, gamma, beta)", "Relu(x)"])
def test_an_outlier_channel_is_smoothed_where_it_gains(before, rng):
    """Into the normalization, which costs nothing; else by a multiplication."""
    folds = before.startswith("Layer")
    data = data_of(rng, outlier=1 if folds else 100)
    model = block(rng, before=before)
    if folds:
        gamma = model.graph.initializers["gamma"].const_value.numpy()
        gamma[3] = 100
    original = model.clone()
    prepared = prepare(model, STATIC, data)
    assert prepared.alpha > 0
    assert ("h" if folds else "h_smoothed") in prepared.smoothings
    assert operators(prepared.model).count("Mul") == (not folds)
    smoothed = error(lower(prepared, STATIC), original, data)
    plain = error(lower(prepare(original.clone(), PLAIN, data), PLAIN), original, data)
    assert smoothed < 0.7 * plain


def test_an_alpha_that_is_asked_for(rng):
    asked = QuantizeRecipe(DType.INT8, smooth=0.5)
    prepared = prepare(block(rng), asked, data_of(rng, outlier=100))
    assert prepared.alpha == 0.5
    assert {one.alpha for one in prepared.smoothings.values()} == {0.5}


def test_only_integers_are_smoothed(rng):
    recipe = QuantizeRecipe(DType.FLOAT8_E4M3)
    assert not prepare(block(rng), recipe, data_of(rng, outlier=100)).smoothings


def test_statistics_prepare_the_same_graph_again(rng):
    model = block(rng)
    first = prepare(model.clone(), QuantizeRecipe(DType.INT8, smooth=0.5), data_of(rng, outlier=50))
    again = prepare_again(model, first.statistics)
    for recipe in (STATIC, QuantizeRecipe(DType.INT8, method=RangeMethod.MINMAX)):
        one, two = (to_proto(lower(prepared, recipe).model) for prepared in (first, again))
        assert one.SerializeToString() == two.SerializeToString()


def test_statistics_of_another_graph(rng):
    statistics = dict(prepare(block(rng), PLAIN, data_of(rng)).statistics)
    del statistics["r"]
    with pytest.raises(RecipeError) as caught:
        prepare_again(block(rng), statistics)
    assert str(caught.value) == "calibration is of another graph, it lacks: r"
    assert caught.value.hint == "Calibrate with a file."


def test_a_group_is_kept_for_one_reason_or_the_other(rng):
    data = data_of(rng)
    model = block(rng)
    prepared = prepare(model, PLAIN, data)
    asked = QuantizeRecipe(DType.INT8, smooth=0, keep=("up",))
    kept = lower(prepared, asked, keep=("down",)).kept
    assert [(node.group, node.reason) for node in kept] == [
        ("up", "kept as asked"), ("down", "kept for accuracy")
    ]  # fmt: skip
    lowered = lower(prepared, PLAIN, keep=["down"])
    assert (lowered.quantized, len(lowered.kept)) == (1, 1)
    assert operators(lowered.model).count("QuantizeLinear") == 1
    # What was prepared is as it was.
    assert lower(prepared, PLAIN).quantized == 2


def test_a_group_there_is_not(rng):
    prepared = prepare(block(rng), DYNAMIC, None)
    with pytest.raises(RecipeError) as caught:
        lower(prepared, DYNAMIC, keep=["up", "sideways"])
    assert str(caught.value) == "there is no such group to keep: sideways"
    assert caught.value.hint == "See the groups with: tfx quantize --list-groups"


def test_rows_that_blocks_do_not_divide_stay_in_floats(rng):
    """As the 172 rows of a down projection of stories260K."""
    recipe = QuantizeRecipe(DType.INT4)
    model = fill_constants(
        graph_of(
            "g (float[n, 64] x, float[64, 36] w, float[36, 32] u) => (float[n, 32] y) "
            "{ h = MatMul(x, w)\n y = MatMul(h, u) }"
        ),
        rng,
    )
    lowered = lower(prepare(model, recipe, None), recipe)
    assert lowered.quantized == 1
    (kept,) = lowered.kept
    assert kept.reason == ("its weight has 36 rows, expected a multiple of 16, the smallest block")
    assert kept.name == str(model.graph[1].name)
    assert operators(lowered.model) == ["DequantizeLinear", "MatMul", "MatMul"]
    asked = lower(prepare(model, recipe, None), recipe, keep=[lowered.kept[0].group])
    assert asked.kept[0].reason == "kept for accuracy"


def test_nothing_to_quantize(rng):
    model = graph_of("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    for recipe, data in ((STATIC, data_of(rng)), (DYNAMIC, None)):
        with pytest.raises(QuantizeError) as caught:
            prepare(model, recipe, data)
        assert str(caught.value) == (
            "the graph has nothing to quantize: no MatMul, Gemm or Gather with 1024 constant "
            "weights or more"
        )
        assert caught.value.hint == "Lower it to 16-bit floats instead: --fp16 or --bf16."


def test_tables_alone_need_no_ranges(rng):
    model = fill_constants(
        graph_of("g (int64[n] i, float[64, 16] t) => (float[n, 16] y) { y = Gather(t, i) }"),
        rng,
        inputs=("i",),
    )
    passes = []
    prepared = prepare(model, STATIC, data_of(rng), lambda *one: passes.append(one))
    assert passes == []
    assert lower(prepared, STATIC).quantized == 1


def test_each_look_is_told(rng):
    passes = []
    prepare(block(rng), PLAIN, data_of(rng), lambda *one: passes.append(one))
    assert passes == [
        (what, done, 3) for what in ("activation ranges", "histograms") for done in (1, 2, 3)
    ]
    passes.clear()
    prepare(block(rng), STATIC, data_of(rng, outlier=100), lambda *one: passes.append(one))
    assert {what for what, *_ in passes} >= {"activation ranges", "histograms"}

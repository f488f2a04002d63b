import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.errors import lines_of
from support.modules import causal_mask

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError, ExportError, FeedError, ParityError
from tfx.export.proof import TOLERANCE, example_cases, prove, reference, text_cases
from tfx.runtime.backend import RunOptions
from tfx.runtime.backends.onnxruntime import OnnxRuntime
from tfx.runtime.pytorch.modules import load_module, run_module
from tfx.signature import ShapeRange, Signature, TensorSpec, ValueRange

TOKENS = ("batch", "sequence")


def text_signature(*, batch=128, sequence=64, mask=True):
    inputs = [TensorSpec("input_ids", DType.INT64, TOKENS, ValueRange(0, 63))]
    if mask:
        inputs.append(TensorSpec("attention_mask", DType.INT64, TOKENS, ValueRange(0, 1)))
    return Signature(
        tuple(inputs),
        (TensorSpec("last_hidden_state", DType.FLOAT32, (*TOKENS, 2)),),
        {"batch": ShapeRange(1, 1, batch), "sequence": ShapeRange(1, 1, sequence)},
    )


SIGNATURE = text_signature()


def per_token(feed, *, leak=0.0, position=0.0):
    """A model whose faults are dials: ``leak`` of padding, dependence on ``position``."""
    ids, mask = feed["input_ids"], feed["attention_mask"]
    kept = (ids * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
    seen = kept + leak * ids.sum(1, keepdims=True) + position * np.arange(ids.shape[1])
    return {"last_hidden_state": np.stack([ids + seen, ids - seen], -1).astype(np.float32) / 64}


def proven(run, *, torch_run=per_token, rng):
    known = reference(torch_run, SIGNATURE, text_cases(SIGNATURE, rng))
    return prove(known, run, SIGNATURE, reference_name="torch", backend="tests")


# feeds for texts


def test_texts_are_padded_on_both_sides_short_and_long(rng):
    cases = text_cases(text_signature(sequence=512), rng)
    wholes = [case for case in cases if case.part_of < 0]
    assert [case.label for case in wholes] == [
        "batch 1, sequence 1",
        "batch 1, sequence 8",
        "batch 3, sequence 13, padded right",
        "batch 3, sequence 13, padded left",
        "batch 8, sequence 33, padded both",
        "batch 8, sequence 64",
        "batch 1, sequence 512",
        "batch 8, sequence 128, padded right",
    ]
    for case in cases:
        SIGNATURE_OF_512.bind(case.feed)


SIGNATURE_OF_512 = text_signature(sequence=512)


def test_rows_alone_have_their_padding_cut_off(rng):
    cases = text_cases(SIGNATURE, rng)
    parts = [case for case in cases if case.part_of >= 0]
    assert {case.claim for case in parts} == {
        "batch = single",
        "right-padded = unpadded",
        "left-padded = unpadded",
    }
    for case in parts:
        whole = cases[case.part_of].feed
        length = case.feed["input_ids"].shape[1]
        kept = slice(case.start, case.start + length)
        assert case.feed["attention_mask"].all()
        np.testing.assert_array_equal(case.feed["input_ids"][0], whole["input_ids"][case.row, kept])
        assert whole["attention_mask"][case.row].sum() == length


def test_shapes_stay_within_the_ranges(rng):
    for case in text_cases(text_signature(batch=4, sequence=10), rng):
        text_signature(batch=4, sequence=10).bind(case.feed)


@pytest.mark.parametrize("batch", [2, 3])
def test_rows_are_compared_alone_in_small_batches_too(batch, rng):
    claims = {case.claim for case in text_cases(text_signature(batch=batch), rng)}
    assert "batch = single" in claims


def test_batch_of_one_has_no_rows_to_compare(rng):
    assert {case.part_of for case in text_cases(text_signature(batch=1), rng)} == {-1}


def test_without_a_mask_nothing_is_padded(rng):
    cases = text_cases(text_signature(mask=False), rng)
    assert not [case for case in cases if "padded" in case.label + case.claim]


# feeds like examples


def by_hand(examples, axes, rng, *, values=None, ranges=None):
    signature = Signature(
        tuple(
            TensorSpec(name, DType.parse(array.dtype), axes[name], (values or {}).get(name))
            for name, array in examples.items()
        ),
        (TensorSpec("output", DType.FLOAT32, ("batch",)),),
        ranges or {},
    )
    cases = example_cases(signature, examples, rng)
    for case in cases:
        signature.bind(case.feed)
    return cases


def test_sizes_are_those_of_the_example_and_others(rng):
    cases = by_hand({"x": np.ones((2, 7, 4), np.float32)}, {"x": (*TOKENS, 4)}, rng)
    shapes = [case.feed["x"].shape for case in cases if case.part_of < 0]
    assert shapes == [(1, 7, 4), (3, 1, 4), (8, 3, 4), (1, 10, 4), (3, 15, 4), (8, 8, 4)]
    assert {case.claim for case in cases if case.part_of >= 0} == {"batch = single"}


def test_sizes_stay_within_the_ranges(rng):
    ranges = {"batch": ShapeRange(1, 2, 2), "sequence": ShapeRange(1, 7, 9)}
    cases = by_hand({"x": np.ones((2, 7), np.float32)}, {"x": TOKENS}, rng, ranges=ranges)
    assert max(case.feed["x"].shape[1] for case in cases) == 9
    assert max(case.feed["x"].shape[0] for case in cases) == 2
    assert any(case.part_of >= 0 for case in cases)


def test_fixed_shapes_differ_in_values(rng):
    cases = by_hand({"x": np.ones((2, 3), np.float32)}, {"x": (2, 3)}, rng)
    assert [case.label for case in cases] == ["fixed shape"] * 3
    assert len({case.feed["x"].tobytes() for case in cases}) == 3


def test_causal_masks_stay_causal(rng):
    mask = causal_mask(5).numpy()
    cases = by_hand(
        {"x": np.ones((2, 5), np.float32), "mask": mask},
        {"x": TOKENS, "mask": ("sequence", "sequence")},
        rng,
    )
    for case in cases:
        size = case.feed["x"].shape[1]
        np.testing.assert_array_equal(case.feed["mask"], causal_mask(size).numpy())


def test_boolean_causal_masks_stay_causal(rng):
    mask = np.triu(np.ones((5, 5), np.bool_), 1)  # True hides
    cases = by_hand({"mask": mask}, {"mask": ("sequence", "sequence")}, rng)
    for case in cases:
        size = len(case.feed["mask"])
        np.testing.assert_array_equal(case.feed["mask"], ~np.tri(size, dtype=np.bool_))


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.int32])
def test_masks_are_resized_not_drawn(dtype, rng):
    mask = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).astype(dtype)
    cases = by_hand({"mask": mask}, {"mask": TOKENS}, rng)
    for case in cases:
        if case.part_of < 0:
            found = case.feed["mask"]
            assert found.dtype == dtype
            assert not found[0].any()
            # padding at the end stays at the end
            assert (np.diff(found.astype(int), axis=1) >= 0).all()
    big = max(cases, key=lambda case: case.feed["mask"].size).feed["mask"]
    assert big.any()


def test_float_masks_are_resized_not_drawn(rng):
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32)
    for case in by_hand({"keep": mask}, {"keep": TOKENS}, rng):
        assert set(np.unique(case.feed["keep"])) <= {0, 1}


@pytest.mark.parametrize("value", [0, 1])
def test_zeros_or_ones_alone_stand_for_any_numbers(value, rng):
    cases = by_hand({"x": np.full((2, 3), value, np.float32)}, {"x": TOKENS}, rng)
    assert all(len(np.unique(case.feed["x"])) == case.feed["x"].size for case in cases)


def test_ids_are_drawn_from_those_of_the_example(rng):
    ids = np.array([[5, 9, 7], [6, 8, 5]])
    cases = by_hand({"ids": ids}, {"ids": TOKENS}, rng, values={"ids": ValueRange(0, 99)})
    drawn = np.concatenate([case.feed["ids"].ravel() for case in cases])
    assert set(drawn) == {5, 6, 7, 8, 9}


def test_noise_is_like_the_example(rng):
    pixels = rng.normal(loc=3, scale=0.5, size=(2, 400)).astype(np.float32)
    for case in by_hand({"x": pixels}, {"x": ("batch", 400)}, rng):
        assert case.feed["x"].dtype == np.float32
        assert abs(case.feed["x"].mean() - 3) < 0.3


# the reference


def test_claims_that_hold(rng):
    known = reference(per_token, SIGNATURE, text_cases(SIGNATURE, rng))
    assert set(known.claims) == {
        "batch = single",
        "right-padded = unpadded",
        "left-padded = unpadded",
    }
    assert known.notes == ()


def test_claims_not_true_in_pytorch_are_notes(rng):
    known = reference(
        lambda feed: per_token(feed, position=0.1), SIGNATURE, text_cases(SIGNATURE, rng)
    )
    assert set(known.claims) == {"batch = single", "right-padded = unpadded"}
    (note,) = known.notes
    assert note.startswith("left-padded = unpadded is not so in PyTorch (error ")
    assert note.endswith("), so not here either")


def test_model_that_fails_itself(rng):
    def run(feed):
        if feed["input_ids"].shape[1] > 30:
            raise RuntimeError("index out of range\nin self")
        return per_token(feed)

    with pytest.raises(ExportError) as caught:
        reference(run, SIGNATURE, text_cases(SIGNATURE, rng))
    assert str(caught.value) == (
        "the model itself fails on a feed of batch 8, sequence 33, padded both: index out of range"
    )
    assert caught.value.hint == (
        "Bound the axis (--max-batch, --max-seq), or name which vary with --dynamic."
    )


# planted faults


def test_the_same_model_passes(rng):
    report = proven(per_token, rng=rng)
    assert report.passed
    assert [(check.name, check.error) for check in report.checks] == [
        ("parity", 0.0),
        ("batch = single", report.checks[1].error),
        ("right-padded = unpadded", report.checks[2].error),
        ("left-padded = unpadded", report.checks[3].error),
    ]
    assert report.outputs[0].max_abs == 0
    assert report.shapes[0] == "batch 1, sequence 1"
    assert len(report.shapes) < report.checks[0].cases  # rows alone are counted, not listed


@pytest.mark.parametrize("error", [3 * TOLERANCE, 1.0, np.nan, np.inf])
def test_wrong_numbers(error, rng):
    def run(feed):
        outputs = per_token(feed)
        if feed["input_ids"].shape == (8, 64) and feed["attention_mask"].all():
            outputs["last_hidden_state"][3, 5, 1] += error
        return outputs

    with pytest.raises(ParityError) as caught:
        proven(run, rng=rng)
    head, *problems = lines_of(str(caught.value))
    assert head == "the exported graph differs from PyTorch by more than 0.0001:"
    assert [problem.partition(": ")[0] for problem in problems] == ["  batch 8, sequence 64"]
    assert caught.value.hint == "Report it with the model's name; nothing was written."


def test_small_rounding_passes(rng):
    def run(feed):
        return {
            name: array + 0.3 * TOLERANCE * np.abs(array).max()
            for name, array in per_token(feed).items()
        }

    report = proven(run, rng=rng)
    assert report.passed
    assert 0.2 * TOLERANCE < report.checks[0].error < 0.4 * TOLERANCE


def test_padding_that_leaks(rng):
    with pytest.raises(ParityError, match="padded right"):
        proven(lambda feed: per_token(feed, leak=0.01), rng=rng)


def test_garbage_at_padding_is_allowed(rng):
    def run(feed):
        outputs = per_token(feed)
        outputs["last_hidden_state"][feed["attention_mask"] == 0] = np.nan
        return outputs

    assert proven(run, rng=rng).passed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outputs: {},
        lambda outputs: {name: array[:, :, :1] for name, array in outputs.items()},
        lambda outputs: {name: array[None] for name, array in outputs.items()},
    ],
    ids=["missing", "narrow", "deep"],
)
def test_wrong_outputs(spoil, rng):
    with pytest.raises(ParityError, match="scaled error inf"):
        proven(lambda feed: spoil(per_token(feed)), rng=rng)


def test_rows_that_see_each_other_only_in_the_graph(rng):
    """Parity holds within the tolerance, invariance does not."""
    allowed = 0.6 * TOLERANCE

    def run(feed):
        side = allowed if len(feed["input_ids"]) > 1 else -allowed
        return {name: array + side * np.abs(array).max() for name, array in per_token(feed).items()}

    with pytest.raises(ParityError, match=r"batch = single: scaled error 1\.\de-04"):
        proven(run, rng=rng)


def test_graph_that_fails(rng):
    def run(feed):
        raise BackendError("no kernel")

    with pytest.raises(
        ParityError, match=r"^the graph fails on a feed of batch 1, sequence 1: no kernel$"
    ):
        proven(run, rng=rng)


def test_every_feed_must_fit_the_signature(rng):
    known = reference(per_token, SIGNATURE, text_cases(SIGNATURE, rng))
    with pytest.raises(FeedError, match=r"axis 'sequence' is 33, outside 1\.\.20"):
        prove(
            known, per_token, text_signature(sequence=20), reference_name="torch", backend="tests"
        )


# faults in a real graph


def run_of(graph, bundle, tmp_path):
    """A runner of ``graph`` in place of the bundle's own."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    onnx.save(graph, folder / "model.onnx")
    return OnnxRuntime().load(Bundle(folder, bundle.manifest, ""), RunOptions(threads=2)).run


def set_attribute(node, name, value):
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def change_one_weight(graph):
    """One of 1024 elements of one attention projection, by 1."""
    weights = {node.input[1] for node in graph.graph.node if node.op_type == "MatMul"}
    tensor = next(
        t for t in graph.graph.initializer if t.name in weights and list(t.dims) == [32, 32]
    )
    array = numpy_helper.to_array(tensor).copy()
    array[3, 4] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def ignore_the_mask(graph):
    for node in graph.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]


def make_causal(graph):
    for node in graph.graph.node:
        if node.op_type == "Attention":
            set_attribute(node, "is_causal", 1)


def change_the_scale(graph):
    for node in graph.graph.node:
        if node.op_type == "Attention":
            set_attribute(node, "scale", 0.3)


def change_the_epsilon(graph):
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                attribute.f = 1e-3


@pytest.mark.parametrize(
    "fault",
    [change_one_weight, ignore_the_mask, make_causal, change_the_scale, change_the_epsilon],
)
def test_faults_in_a_graph_are_caught(fault, encoder, tmp_path, rng):
    graph = onnx.load(encoder.model)
    before = graph.SerializeToString()
    fault(graph)
    assert graph.SerializeToString() != before
    with pytest.raises(ParityError, match=r"^the exported graph differs from PyTorch"):
        _prove_graph(graph, encoder, tmp_path, rng)


def test_graph_without_a_fault_passes(encoder, tmp_path, rng):
    assert _prove_graph(onnx.load(encoder.model), encoder, tmp_path, rng).passed


def _prove_graph(graph, bundle, tmp_path, rng):
    signature = bundle.manifest.signature
    module = load_module(bundle.manifest.source)
    known = reference(lambda feed: run_module(module, feed), signature, text_cases(signature, rng))
    return prove(
        known, run_of(graph, bundle, tmp_path), signature, reference_name="torch", backend="tests"
    )

import io
import pickle
import zipfile

import numpy as np
import pytest
from support.bundles import TEXT_SIGNATURE
from support.proofs import text_cases, text_outputs

from tfx.dtypes import DType
from tfx.errors import BundleError
from tfx.report import ParityReport
from tfx.runtime import proof
from tfx.runtime.proof import (
    Case,
    check_cases,
    compare_case,
    invariance_error,
    load_cases,
    rows_of,
    store_cases,
    valid_rows,
)
from tfx.signature import Signature, TensorSpec, ValueRange

OUTPUTS = Signature(
    (TensorSpec("attention_mask", DType.INT64, ("batch", "sequence"), ValueRange(0, 1)),),
    (
        TensorSpec("tokens", DType.FLOAT32, ("batch", "sequence", 4)),
        TensorSpec("starts", DType.FLOAT32, ("batch", "sequence")),
        TensorSpec("pooled", DType.FLOAT32, ("batch", 3)),
        TensorSpec("loss", DType.FLOAT32, ()),
        TensorSpec("heads", DType.FLOAT32, ("batch", "sequence", 2, 4)),
    ),
)
MASK = np.array([[1, 1, 0], [1, 0, 0]])
SHAPES = {
    "tokens": (2, 3, 4),
    "starts": (2, 3),
    "pooled": (2, 3),
    "loss": (),
    "heads": (2, 3, 2, 4),
}


def outputs(rng):
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


# rows


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("tokens", [1, 1, 0, 1, 0, 0]),
        ("starts", [1, 1, 0, 1, 0, 0]),
        ("pooled", [1, 1]),
        ("loss", [1]),
        ("heads", [1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0]),
    ],
)
def test_rows_of_padding_mean_nothing(name, valid, rng):
    array = outputs(rng)[name]
    found = valid_rows(OUTPUTS, name, {"attention_mask": MASK}, array)
    np.testing.assert_array_equal(found, np.array(valid, bool))
    assert len(rows_of(OUTPUTS, name, array)) == len(valid)


def test_without_a_mask_every_row_counts(rng):
    assert valid_rows(OUTPUTS, "tokens", {}, outputs(rng)["tokens"]).all()


def test_mask_of_other_positions_hides_nothing(rng):
    """An image model of text shape, or a mask longer than the output."""
    feed = {"attention_mask": np.zeros((2, 5), np.int64)}
    assert valid_rows(OUTPUTS, "tokens", feed, outputs(rng)["tokens"]).all()


@pytest.mark.parametrize("name", ["tokens", "starts", "heads"])
def test_difference_at_padding_is_allowed_and_elsewhere_is_not(name, rng):
    reference = outputs(rng)
    feed = {"attention_mask": MASK}
    actual = {key: array.copy() for key, array in reference.items()}
    actual[name][0, 2] += 7
    assert compare_case(OUTPUTS, feed, reference, actual)[1] == 0
    actual[name][0, 1] += 7
    assert compare_case(OUTPUTS, feed, reference, actual)[1] > 1


def test_missing_output_is_infinitely_wrong(rng):
    reference = outputs(rng)
    actual = {name: array for name, array in reference.items() if name != "loss"}
    assert compare_case(OUTPUTS, {}, reference, actual)[1] == np.inf


# a row of a batch


def test_invariance_compares_the_row_where_the_part_begins(rng):
    whole = outputs(rng)
    case = Case("row 1", {}, part_of=0, row=1, start=1)
    part = {
        "tokens": whole["tokens"][1:2, 1:],
        "starts": whole["starts"][1:2, 1:],
        "pooled": whole["pooled"][1:2],
        "loss": whole["loss"] + 9,  # of the whole batch: no claim
        "heads": whole["heads"][1:2, 1:],
    }
    assert invariance_error(OUTPUTS, case, whole, part) == 0
    part["pooled"] = part["pooled"] + np.float32(0.5)
    assert invariance_error(OUTPUTS, case, whole, part) == pytest.approx(0.5, rel=0.8)
    shifted = Case("row 1", {}, part_of=0, row=1, start=0)
    assert invariance_error(OUTPUTS, shifted, whole, part) > 0.1


# stored


def stored(path, rng, cases=None):
    cases = cases or text_cases(rng)
    count = store_cases(path, TEXT_SIGNATURE, cases, [text_outputs(c.feed) for c in cases], rng)
    return count, load_cases(path)


def test_stored_cases_come_back(tmp_path, rng):
    cases = text_cases(rng)
    count, back = stored(tmp_path / "proof.npz", rng, cases)
    assert count == len(back) == 2
    for case, other in zip(cases, back, strict=True):
        assert other.label == case.label
        assert other.feed.keys() == case.feed.keys()
        for name, array in case.feed.items():
            np.testing.assert_array_equal(other.feed[name], array)
            assert other.feed[name].dtype == array.dtype
        sample = other.samples["last_hidden_state"]
        reference = text_outputs(case.feed)["last_hidden_state"]
        assert sample.shape == reference.shape
        np.testing.assert_array_equal(
            sample.values,
            rows_of(TEXT_SIGNATURE, "last_hidden_state", reference)[sample.rows],
        )
        assert len(sample.rows) == case.feed["attention_mask"].sum()  # padding is not sampled


def test_right_outputs_pass(tmp_path, rng):
    _, cases = stored(tmp_path / "proof.npz", rng)
    errors, check = check_cases(text_outputs, cases, 1e-4)
    assert check.passed
    assert (check.name, check.cases, check.error) == ("parity", 2, 0.0)
    assert errors[0].max_abs == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda array: array * np.float32(1.01),
        lambda array: array + np.float32(np.nan),
        lambda array: array[:, :, :-1],
        lambda array: array[0],
        lambda array: -array,
    ],
    ids=["scaled", "NaN", "narrow", "flat", "negated"],
)
def test_wrong_outputs_fail(spoil, tmp_path, rng):
    _, cases = stored(tmp_path / "proof.npz", rng)

    def run(feed):
        return {name: spoil(array) for name, array in text_outputs(feed).items()}

    _, check = check_cases(run, cases, 1e-4)
    assert not check.passed


def test_missing_output_fails(tmp_path, rng):
    _, cases = stored(tmp_path / "proof.npz", rng)
    _, check = check_cases(lambda feed: {}, cases, 1e-4)
    assert check.error == np.inf


def test_no_cases_prove_nothing():
    errors, check = check_cases(text_outputs, [], 1e-4)
    assert not ParityReport("", "", (), errors, ()).passed
    assert check.cases == 0


def test_smallest_feeds_are_kept_within_the_budget(tmp_path, rng, monkeypatch):
    cases = text_cases(rng, shapes=((8, 30), (2, 3), (4, 20)))
    monkeypatch.setattr(proof, "BUDGET_BYTES", 8_000)
    count, back = stored(tmp_path / "proof.npz", rng, cases)
    assert [case.label for case in back] == ["batch 2, sequence 3", "batch 4, sequence 20"]
    assert count == 2


def test_one_feed_is_kept_whatever_its_size(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(proof, "BUDGET_BYTES", 1)
    count, back = stored(tmp_path / "proof.npz", rng)
    assert count == len(back) == 1


def test_samples_are_bounded(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(proof, "SAMPLE_ELEMENTS", 24)
    _, back = stored(tmp_path / "proof.npz", rng)
    assert {case.samples["last_hidden_state"].values.shape for case in back} == {(3, 8)}
    _, check = check_cases(text_outputs, back, 1e-4)
    assert check.passed


def test_same_proof_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        stored(tmp_path / name, np.random.default_rng(5))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


# damaged


def test_missing_proof(tmp_path):
    with pytest.raises(BundleError) as caught:
        load_cases(tmp_path / "proof.npz")
    assert str(caught.value) == f"{tmp_path} carries no proof: it has no proof.npz"


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def sample(rows):
    """A stored case of one output, ``float32[3, 2]``."""
    return {
        "0/label": np.array("x"),
        "0/shape/y": np.array([3, 2]),
        "0/rows/y": np.array(rows),
        "0/values/y": np.ones((2, 2), np.float32),
    }


def proof_bytes(path):
    stored(path, np.random.default_rng(5))
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"hello" * 99,
        lambda data: data[:200] + bytes(200) + data[400:],
        lambda data: npy(np.ones(3)),
        lambda data: npz(other=np.ones(3)),
        lambda data: npz(**sample(rows=[0, 9])),
        lambda data: npz(**sample(rows=[0, -1])),
        lambda data: npz(**sample(rows=[0])),
        lambda data: npz(**{"0/label": np.array("x"), "0/shape/y": np.array([1, 2])}),
        lambda data: npz(**{"0/feed/x": np.ones(3)}),
    ],
    ids=[
        "empty",
        "half",
        "junk",
        "hole",
        "one array",
        "another",
        "high row",
        "low row",
        "few rows",
        "no values",
        "no label",
    ],
)
def test_damaged_proof(damage, tmp_path):
    path = tmp_path / "proof.npz"
    path.write_bytes(damage(proof_bytes(path)))
    with pytest.raises(BundleError) as caught:
        load_cases(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert caught.value.hint == "Make the bundle again."


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_in_a_proof_are_never_read(tmp_path):
    path, ran = tmp_path / "proof.npz", tmp_path / "ran"
    array = np.empty(1, object)
    array[0] = Trap(ran)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0/label.npy", file.getvalue())
    with pytest.raises(BundleError, match="allow_pickle=False"):
        load_cases(path)
    path.write_bytes(pickle.dumps(Trap(ran)))
    with pytest.raises(BundleError, match="is damaged"):
        load_cases(path)
    assert not ran.exists()


# masks that are not those of transformers


def test_mask_of_another_meaning_hides_nothing(rng):
    inverted = Signature(
        (TensorSpec("attention_mask", DType.BOOL, ("batch", "sequence")),), OUTPUTS.outputs
    )
    feed = {"attention_mask": np.zeros((2, 3), np.bool_)}
    whole = outputs(rng)
    wrong = whole | {"tokens": 2 * whole["tokens"]}
    assert valid_rows(inverted, "tokens", feed, whole["tokens"]).all()
    assert compare_case(inverted, feed, whole, wrong)[1] > 0.1


def test_outputs_without_a_valid_row_prove_nothing(rng):
    whole = outputs(rng)
    feed = {"attention_mask": np.zeros((2, 3), np.int64)}
    assert compare_case(OUTPUTS, feed, whole, whole)[1] == np.inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import TEXT_SIGNATURE, VOCABULARY
from support.errors import lines_of

from tfx.dtypes import DType
from tfx.errors import FeedError, SignatureError
from tfx.signature import ShapeRange, Signature, TensorSpec, ValueRange


def feed(batch=2, sequence=5, **changes):
    whole = {
        "input_ids": np.zeros((batch, sequence), np.int64),
        "attention_mask": np.ones((batch, sequence), np.int64),
    } | changes
    return {name: array for name, array in whole.items() if array is not ...}


def problems_of(signature, arrays, **options):
    with pytest.raises(FeedError) as caught:
        signature.bind(arrays, **options)
    head, *problems = lines_of(str(caught.value))
    assert head == "feed does not fit the signature:"
    return [problem.strip() for problem in problems]


def test_bind_gives_each_axis_its_size():
    assert TEXT_SIGNATURE.bind(feed(3, 7)) == {"batch": 3, "sequence": 7}


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        (feed(attention_mask=...), "attention_mask: missing"),
        (feed(labels=np.zeros(2)), "labels: not an input"),
        (
            feed(attention_mask=None),
            "attention_mask: int64[batch, sequence]: got NoneType, not a NumPy array",
        ),
        (
            feed(input_ids=[[1, 2]]),
            "input_ids: int64[batch, sequence]: got list, not a NumPy array",
        ),
        (
            feed(input_ids=np.ma.masked_equal(np.full((2, 5), VOCABULARY), VOCABULARY)),
            "input_ids: int64[batch, sequence]: got a masked array, whose hidden values would "
            "be read",
        ),
        (
            feed(input_ids=np.zeros((2, 5), np.int32)),
            "input_ids: int64[batch, sequence]: got int32[2, 5]",
        ),
        (
            feed(input_ids=np.zeros((2, 5), ">i8")),
            "input_ids: int64[batch, sequence]: got >i8[2, 5]",
        ),
        (
            feed(input_ids=np.zeros((2, 5, 1), np.int64)),
            "input_ids: int64[batch, sequence]: got int64[2, 5, 1]",
        ),
        (
            feed(attention_mask=np.ones((2, 6), np.int64)),
            "attention_mask: int64[batch, sequence]: axis 'sequence' is 6, elsewhere 5",
        ),
        (feed(batch=17), "axis 'batch' is 17, outside 1..16"),
        (feed(sequence=33), "axis 'sequence' is 33, outside 1..32"),
        (feed(batch=0), "axis 'batch' is empty"),
        (
            feed(input_ids=np.full((2, 5), VOCABULARY)),
            "input_ids: int64[batch, sequence]: values 64..64, outside 0..63",
        ),
        (
            feed(input_ids=np.full((2, 5), -1)),
            "input_ids: int64[batch, sequence]: values -1..-1, outside 0..63",
        ),
    ],
)
def test_bind_says_what_is_wrong(arrays, problem):
    assert problems_of(TEXT_SIGNATURE, arrays) == [problem]


def test_bind_lists_every_problem_at_once():
    arrays = feed(batch=17, attention_mask=np.ones((17, 6), np.int64), extra=np.zeros(1))
    arrays["input_ids"] += VOCABULARY
    assert len(problems_of(TEXT_SIGNATURE, arrays)) == 4


IMAGE = Signature(
    (TensorSpec("pixel_values", DType.FLOAT32, ("batch", 3, 4)),),
    (TensorSpec("logits", DType.FLOAT32, ("batch", 2)),),
)


def test_bind_checks_fixed_sizes():
    assert problems_of(IMAGE, {"pixel_values": np.zeros((1, 1, 4), np.float32)}) == [
        "pixel_values: float32[batch, 3, 4]: dimension 1 is 1, expected 3"
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bind_refuses_values_that_are_not_finite_where_asked(value):
    pixels = np.zeros((1, 3, 4), np.float32)
    pixels[0, 0, :2] = value
    assert IMAGE.bind({"pixel_values": pixels}) == {"batch": 1}
    assert problems_of(IMAGE, {"pixel_values": pixels}, check_finite=True) == [
        "pixel_values: float32[batch, 3, 4]: 2 values are NaN or infinite"
    ]


def test_an_axis_without_a_range_is_unbounded():
    assert IMAGE.bind({"pixel_values": np.zeros((1000, 3, 4), np.float32)}) == {"batch": 1000}


dtypes = st.sampled_from([np.int64, np.int32, np.float32, np.bool_])
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
arrays = st.builds(lambda s, d, v: np.full(s, v, d), shapes, dtypes, st.integers(-2, 70))
feeds = st.dictionaries(
    st.sampled_from(["input_ids", "attention_mask", "labels"]), arrays | st.none(), max_size=3
)


@given(feeds)
def test_bind_never_accepts_what_it_should_not(arrays):
    accepted = TEXT_SIGNATURE.acceptor()(arrays)
    try:
        sizes = TEXT_SIGNATURE.bind(arrays)
    except FeedError:
        assert not accepted
        return
    assert accepted
    assert arrays.keys() == {"input_ids", "attention_mask"}
    for name, array in arrays.items():
        assert array.dtype == np.int64, name
        assert array.shape == (sizes["batch"], sizes["sequence"]), name
    assert 1 <= sizes["batch"] <= 16
    assert 1 <= sizes["sequence"] <= 32
    assert np.isin(arrays["input_ids"], np.arange(VOCABULARY)).all()
    assert np.isin(arrays["attention_mask"], [0, 1]).all()


@given(st.integers(1, 16), st.integers(1, 32))
def test_bind_accepts_everything_in_range(batch, sequence):
    assert TEXT_SIGNATURE.bind(feed(batch, sequence)) == {"batch": batch, "sequence": sequence}
    assert TEXT_SIGNATURE.acceptor()(feed(batch, sequence))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_shape_range_is_ordered(sizes):
    with pytest.raises(SignatureError, match="need 1 <= min <= opt <= max, got"):
        ShapeRange(*sizes)


def test_shape_range_holds_its_ends():
    sizes = ShapeRange(2, 3, 4)
    assert [n for n in range(7) if n in sizes] == [2, 3, 4]
    assert "3" not in sizes


def test_value_range_is_ordered():
    with pytest.raises(SignatureError, match=r"need min <= max, got 2\.\.1"):
        ValueRange(2, 1)


X = TensorSpec("x", DType.FLOAT32, ("batch",))
Y = TensorSpec("y", DType.FLOAT32, ("batch",))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (((), (Y,)), "no inputs"),
        (((X,), ()), "no outputs"),
        (((X, X), (Y,)), "x: named twice"),
        (((X,), (X,)), "x: named twice"),
        (
            ((X,), (Y,), {"sequence": ShapeRange(1, 1, 1)}),
            "axis 'sequence' has a range and no input uses it",
        ),
    ],
)
def test_signature_refuses_what_describes_no_model(arguments, problem):
    with pytest.raises(SignatureError) as caught:
        Signature(*arguments)
    assert str(caught.value) == f"not a signature: {problem}"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("", DType.INT64, ()), "a tensor without a name"),
        (
            ("x", DType.INT64, ("batch", 0)),
            "dimension 1 of x: int64[batch, 0] is 0, expected a size of 1 or more, or an axis name",
        ),
        (
            ("x", DType.INT64, ("",)),
            "dimension 0 of x: int64[] is '', expected a size of 1 or more, or an axis name",
        ),
        (
            ("x", DType.FLOAT32, (1,), ValueRange(0, 1)),
            "x: float32[1] has a range of values, expected one for integers only",
        ),
    ],
)
def test_tensor_spec_refuses_what_is_no_tensor(arguments, problem):
    with pytest.raises(SignatureError) as caught:
        TensorSpec(*arguments)
    assert str(caught.value) == f"not a tensor: {problem}"


def test_signature_is_shown_as_a_reader_wants_it():
    assert str(TEXT_SIGNATURE).splitlines() == [
        "inputs",
        "  input_ids: int64[batch, sequence]  values 0..63",
        "  attention_mask: int64[batch, sequence]  values 0..1",
        "outputs",
        "  last_hidden_state: float32[batch, sequence, 8]",
        "axes",
        "  batch: 1 to 16, tuned for 4",
        "  sequence: 1 to 32, tuned for 16",
    ]


@pytest.mark.parametrize(
    "bad",
    [
        feed(attention_mask=...),
        feed(more=np.zeros(2)),
        feed(batch=17),
        feed(sequence=0),
        feed(input_ids=np.full((2, 5), -1)),
        feed(input_ids=np.full((2, 5), VOCABULARY)),
        feed(input_ids=np.zeros((2, 5), np.int32)),
        feed(input_ids=np.zeros((2, 4), np.int64)),
        feed(input_ids=np.zeros(10, np.int64)),
        feed(input_ids=[[0] * 5] * 2),
    ],
)
def test_acceptor_leaves_what_does_not_fit_to_bind(bad):
    assert not TEXT_SIGNATURE.acceptor()(bad)
    with pytest.raises(FeedError):
        TEXT_SIGNATURE.bind(bad)


@pytest.mark.parametrize("dtype", [DType.INT64, DType.INT8, DType.UINT8])
@pytest.mark.parametrize(("low", "high"), [(1, 3), (0, 0), (2, 100)])
def test_acceptor_takes_values_from_the_least_to_the_largest(dtype, low, high):
    bounded = Signature(
        (TensorSpec("x", dtype, (2, 2), ValueRange(low, high)),), (TensorSpec("y", dtype, (2,)),)
    )
    accepts = bounded.acceptor()
    inside = np.array([[high, low], [low, high]], dtype.numpy)
    assert accepts({"x": inside})
    for at in range(4):
        for beyond in (low - 1, high + 1):
            if beyond >= 0 or dtype.numpy.kind == "i":
                outside = inside.copy()
                outside.flat[at] = beyond
                assert not accepts({"x": outside})


def test_acceptor_takes_values_below_zero_and_a_scalar():
    odd = Signature(
        (TensorSpec("x", DType.INT64, (), ValueRange(-1, 1)),),
        (TensorSpec("y", DType.INT64, (2,)),),
    )
    found = [odd.acceptor()({"x": np.array(value)}) for value in (-2, -1, 1, 2)]
    assert found == [False, True, True, False]


def test_acceptor_knows_a_type_by_its_value():
    accepts = TEXT_SIGNATURE.acceptor()
    same = np.dtype(np.int64, copy=True)
    found = {name: array.astype(same) for name, array in feed(2, 5).items()}
    assert found["input_ids"].dtype is not np.dtype(np.int64)
    assert accepts(found)
    assert not accepts({name: array.astype(">i8") for name, array in feed(2, 5).items()})


def test_acceptor_remembers_shapes_and_not_what_was_in_them():
    accepts = TEXT_SIGNATURE.acceptor()
    assert accepts(feed(2, 5))
    assert accepts(feed(2, 5))
    bad = feed(2, 5)
    bad["input_ids"][1, 4] = -1
    assert not accepts(bad)
    other = {name: array.astype(np.int32) for name, array in feed(2, 5).items()}
    assert not accepts(other)


def test_acceptor_goes_on_when_it_can_remember_no_more_shapes(monkeypatch):
    monkeypatch.setattr("tfx.signature.REMEMBERED_SHAPES", 1)
    accepts = TEXT_SIGNATURE.acceptor()
    assert [accepts(feed(batch, 5)) for batch in (1, 2, 1, 2)] == [True] * 4


@pytest.mark.parametrize(("size", "nearest"), [(1, 2), (2, 2), (5, 5), (8, 8), (9, 8)])
def test_the_size_of_a_range_that_is_nearest(size, nearest):
    assert ShapeRange(2, 4, 8).nearest(size) == nearest


def test_axes_of_the_inputs_each_once():
    shapes = (("batch", 3, "height"), ("batch", "width"))
    inputs = tuple(TensorSpec(f"x{i}", DType.FLOAT32, shape) for i, shape in enumerate(shapes))
    outputs = (TensorSpec("y", DType.FLOAT32, ("batch", 1)),)
    assert Signature(inputs, outputs).axes == ("batch", "height", "width")

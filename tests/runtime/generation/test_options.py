"""Options of wrong kinds, and temperatures next to 0."""

import numpy as np
import pytest

from tfx.errors import FeedError
from tfx.runtime.generation.generator import Options, options_from
from tfx.runtime.generation.sampling import cooled, draw, probabilities


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5, expected a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens is None, expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected a whole number"),
        ({"top_k": 2.0, "temperature": 1}, "top_k is 2.0, expected a whole number"),
        ({"seed": "7"}, "seed is '7', expected a whole number"),
        ({"num_beams": 2.5}, "num_beams is 2.5, expected a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"top_p": None}, "top_p is None, expected a number"),
        ({"temperature": float("nan")}, "temperature is nan, expected 0 or more"),
    ],
)
def test_what_is_no_number(options, message):
    with pytest.raises(FeedError) as caught:
        options_from(options)
    assert str(caught.value) == f"text cannot go on like this: {message}"
    assert caught.value.hint == "Leave an option out for its default."


def test_numbers_of_numpy_are_numbers():
    found = Options(max_new_tokens=np.int64(3), temperature=np.float32(0.5), top_k=np.int32(2))
    assert (found.max_new_tokens, found.top_k) == (3, 2)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(FeedError) as caught:
        Options(max_new_tokens="many", seed=0.5)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("stop", "stops"),
    [("end", ("end",)), (5, (5,)), ([5, "end"], (5, "end")), (np.int64(5), (5,)), ([], ())],
)
def test_one_stop_or_several(stop, stops):
    assert options_from({"stop": stop}).stop == stops


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_a_temperature_divides(temperature, rng):
    logits = rng.normal(scale=5, size=(3, 20)).astype(np.float32)
    np.testing.assert_allclose(
        probabilities(cooled(logits, temperature)),
        probabilities(logits / np.float32(temperature)),
        rtol=1e-5,
    )


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-300, 5e-324])
def test_next_to_0_the_likeliest_is_drawn(temperature, rng):
    logits = rng.normal(scale=5, size=(4, 20)).astype(np.float32)
    logits[0, 3] = -np.inf
    found = cooled(logits, temperature)
    assert found.dtype == np.float32
    assert not np.isnan(found).any()
    rngs = [np.random.default_rng(row) for row in range(4)]
    assert draw(found, rngs).tolist() == logits.argmax(axis=1).tolist()

"""The arrays of a cache: how much room they have, and what is in memory when they grow."""

import weakref

import numpy as np
import pytest

from tfx.dtypes import DType
from tfx.runtime.generation import decoder as decoders
from tfx.runtime.generation.decoder import OnnxInPlace
from tfx.signature import Signature, TensorSpec

NAMES = [f"past_{kind}_{layer}" for layer in range(3) for kind in ("key", "value")]


@pytest.fixture
def stepping():
    shape = ("batch", 2, "capacity", 4)
    inputs = tuple(TensorSpec(name, DType.FLOAT32, shape) for name in NAMES)
    logits = TensorSpec("logits", DType.FLOAT32, ("batch", "kept", 7))
    made = OnnxInPlace(None, Signature(inputs, (logits,)))
    made.begin(2, 5)
    for number, array in enumerate(made._cache.values()):
        array[...] = number + np.arange(5)[:, None]
    return made


class Watched(dict):
    """A cache that counts, whenever an array is put into it, how many old ones are alive."""

    def __init__(self, cache):
        super().__init__(cache)
        self.old = [weakref.ref(array) for array in cache.values()]
        self.alive = []

    def __setitem__(self, name, array):
        super().__setitem__(name, array)
        self.alive.append(sum(one() is not None for one in self.old))


@pytest.mark.parametrize("change", ["grow", "take"])
def test_each_array_is_let_go_of_before_the_next_is_copied(stepping, change):
    """Else there are two caches in memory at that moment."""
    stepping._binding = list(stepping._cache.values())  # as ONNX Runtime's keeps them alive
    stepping._cache = Watched(stepping._cache)
    if change == "grow":
        stepping.grow(9)
    else:
        stepping.take(np.array([1, 1, 0]))
    # The one that was copied last is still in the loop's hand.
    assert stepping._cache.alive == [6, 5, 4, 3, 2, 1]
    assert stepping._binding is None
    assert stepping.copied == 1


def test_what_is_in_a_cache_stays_when_it_grows(stepping):
    before = {name: array.copy() for name, array in stepping._cache.items()}
    stepping.grow(9)
    for name, array in stepping._cache.items():
        assert array.shape == (2, 2, 9, 4)
        np.testing.assert_array_equal(array[:, :, :5], before[name])
        assert not array[:, :, 5:].any()


def test_room_is_for_some_tokens_more_and_never_for_more_than_asked():
    assert decoders._roomy(16, 1000) == 16 + decoders.SPARE_PLACES
    assert decoders._roomy(800, 1000) == 900
    assert decoders._roomy(950, 1000) == 1000

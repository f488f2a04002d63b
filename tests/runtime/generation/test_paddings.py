"""Prompts of several lengths at once write what each writes alone, whatever is around them."""

import functools

import numpy as np
import pytest
from support.generators import write_generator
from support.pairs import write_pair

import tfx
from tfx.export.pipeline import export_bundles
from tfx.recipe import ExportRecipe
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.generation.decoder import Decoder

LENGTHS = (9, 2, 5)
NEW_TOKENS, PLACES = 12, 24

# Absolute and rotary positions, norms of queries and keys.
FAMILIES = ("gpt2", "llama", "qwen3")
# A window shorter than the texts, in places of the cache.
WINDOWED = ("mistral",)
# Learned positions in an encoder; T5 and Marian are in test_pair_generation.py.
PAIRS = ("bart",)


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    @functools.cache
    def export(family):
        folder = tmp_path_factory.mktemp(family)
        source = (write_pair if family in PAIRS else write_generator)(folder / "source", family)
        recipe = ExportRecipe(max_sequence=PLACES)
        return export_bundles(str(source), folder / "made", recipe, cache=True)[-1]

    return export


@pytest.mark.parametrize("family", FAMILIES + WINDOWED + PAIRS)
def test_a_batch_writes_what_each_writes_alone(bundle_of, family, rng):
    with tfx.open_session(bundle_of(family), backend="onnxruntime") as session:
        assert_neighbours_change_nothing(session, rng)


def assert_neighbours_change_nothing(session, rng):
    prompts = [rng.integers(4, 16, length).tolist() for length in LENGTHS]
    for options in ({}, {"temperature": 1.0, "seed": 5}):
        together = session.generate(prompts, max_new_tokens=NEW_TOKENS, **options)
        assert all(len(one.ids) == NEW_TOKENS for one in together if one.finish == "length")
        assert any(len(one.ids) > 1 for one in together)
        for place, prompt in enumerate(prompts):
            # What is drawn depends on the place in the list, and not on who is beside it.
            others = [[7], [8, 9, 10, 11]][:place]
            alone = session.generate([*others, prompt], max_new_tokens=NEW_TOKENS, **options)
            assert alone[place] == together[place]


def logits_of_steps(bundle, ids, mask, steps):
    """Logits after each step, ``[step, row, vocabulary]``, behind prompts of any padding."""
    executable = get_backend("onnxruntime").load(bundle, RunOptions(threads=1))
    decoder = Decoder(executable, bundle.manifest.signature)
    decoder.start(ids, mask, PLACES)
    return np.stack([decoder.step(tokens) for tokens in steps])


@pytest.mark.parametrize(
    ("family", "side"),
    [
        *((family, side) for family in FAMILIES for side in ("left", "right")),
        # On the right a window of places would reach less far back: only the left is promised.
        *((family, "left") for family in WINDOWED),
    ],
)
def test_steps_behind_padding_are_those_without_it(bundle_of, family, side, rng):
    """A decoder by itself goes on as behind the prompt alone."""
    width, sizes = 8, (8, 5)
    ids = rng.integers(4, 16, (2, width))
    steps = rng.integers(4, 16, (9, 2))
    place, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, size in enumerate(sizes):
        part = slice(width - size, width) if side == "left" else slice(size)
        place[row, part], mask[row, part] = ids[row, :size], 1
    found = logits_of_steps(bundle_of(family), place, mask, steps)
    for row, size in enumerate(sizes):
        one = ids[row : row + 1, :size]
        alone = logits_of_steps(bundle_of(family), one, np.ones_like(one), steps[:, row : row + 1])
        np.testing.assert_allclose(found[:, row], alone[:, 0], rtol=1e-3, atol=1e-4)

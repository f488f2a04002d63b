"""Prompts of several lengths at once write what each writes alone, whatever is around them."""

import numpy as np
import pytest
from support.generators import write_generator

import tfx
from tfx.export.pipeline import export_bundles
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.generation.decoder import Decoder

LENGTHS = (9, 2, 5)
# Absolute and rotary positions, norms of queries and keys.
FAMILIES = ("gpt2", "llama", "qwen3")


@pytest.fixture(scope="module", params=FAMILIES)
def session(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = write_generator(folder / "source", request.param)
    (bundle,) = export_bundles(str(source), folder / "made", cache=True)
    with tfx.open_session(bundle, backend="onnxruntime") as opened:
        yield opened


def test_a_batch_writes_what_each_writes_alone(session, rng):
    prompts = [rng.integers(4, 16, length).tolist() for length in LENGTHS]
    for options in ({}, {"temperature": 1.0, "seed": 5}):
        together = session.generate(prompts, max_new_tokens=12, **options)
        assert [len(one.ids) for one in together if one.finish == "length"] == [12] * sum(
            one.finish == "length" for one in together
        )
        for place, prompt in enumerate(prompts):
            # What is drawn depends on the place in the list, and not on who is beside it.
            others = [[7], [8, 9, 10, 11]][:place]
            alone = session.generate([*others, prompt], max_new_tokens=12, **options)
            assert alone[place] == together[place]


def test_the_side_of_padding_does_not_matter(session, rng):
    """A decoder by itself reads prompts padded on either side, and goes on the same."""
    bundle = session.bundle
    ids = rng.integers(4, 16, (2, 8))
    steps = rng.integers(4, 16, (5, 2))
    found = []
    for left in (True, False):
        place, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, size in enumerate((8, 5)):
            part = slice(8 - size, 8) if left else slice(size)
            place[row, part], mask[row, part] = ids[row, :size], 1
        executable = get_backend("onnxruntime").load(bundle, RunOptions(threads=1))
        decoder = Decoder(executable, bundle.manifest.signature)
        decoder.start(place, mask, 40)
        found.append([decoder.step(tokens).copy() for tokens in steps])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)

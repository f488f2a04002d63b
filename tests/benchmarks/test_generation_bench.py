"""``python -m tfx.bench.generation``: the same tokens every way, times that fit each other."""

import json

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.generators import write_generator

from tfx.bench.generation import cache_bytes, main, measure
from tfx.errors import FeedError
from tfx.export.pipeline import export_bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    source = write_generator(folder / "source", "gpt2")
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


def test_every_way_writes_the_same(bundle):
    found = measure(bundle, prompt=5, new_tokens=8, rounds=1)
    assert [one.name for one in found] == ["onnxruntime", "openvino", "transformers"]
    for one in found:
        assert one.same
        assert 0 < one.first_ms <= one.total_s * 1e3
        assert one.step_ms > 0
        assert one.tokens_per_s == one.row_tokens_per_s == pytest.approx(8 / one.total_s)


def test_rows_count_together(bundle):
    for one in measure(bundle, batch=3, prompt=5, new_tokens=4, rounds=1):
        assert one.same
        assert one.tokens_per_s == pytest.approx(3 * one.row_tokens_per_s)


def test_a_cache_is_keys_and_values_of_all_layers(bundle):
    assert cache_bytes(bundle.manifest.signature, 10) == 10 * 2 * 2 * 32 * 4


def test_what_cannot_be_measured(bundle, tmp_path):
    with pytest.raises(FeedError, match="60 and 5 tokens are asked for, the model takes 64"):
        measure(bundle, prompt=60, new_tokens=5)
    with pytest.raises(FeedError, match="has no cache to generate with"):
        measure(write_bundle(tmp_path / "tiny"))


def test_command(bundle):
    options = ["--prompt", "4", "--new-tokens", "3", "--rounds", "1", "--alone"]
    result = CliRunner().invoke(main, [str(bundle.path), *options])
    assert result.exit_code == 0
    assert "onnxruntime" in result.output
    assert "cache: 0.0 MB, 512 bytes a token" in result.output
    document = json.loads(CliRunner().invoke(main, [str(bundle.path), *options, "--json"]).stdout)
    assert {way["same"] for way in document["ways"]} == {True}
    refused = CliRunner().invoke(main, [str(bundle.path), "--prompt", "70"])
    assert refused.exit_code == 1
    assert "the model takes 64" in refused.output

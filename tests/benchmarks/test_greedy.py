"""``python -m tfx.bench.greedy``: the tokens of transformers, and what is said of others."""

import json

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle
from support.generators import write_generator

from tfx.bench import greedy as module
from tfx.bench.greedy import Difference, compare_greedy, greedy
from tfx.errors import FeedError
from tfx.export.pipeline import export_bundles


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = write_generator(folder / "source", request.param)
    return export_bundles(str(source), folder / "bundle", cache=True)[0]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_tokens_are_transformers(bundle, backend):
    found = compare_greedy(bundle, backend, prompts=6, new_tokens=12)
    assert found.differences == ()
    assert 6 <= found.tokens <= 6 * 12


def test_other_tokens_are_found(bundle, monkeypatch):
    right = module._greedy

    def other(model, prompt, new_tokens):
        ids = right(model, prompt, new_tokens)
        return [*ids[:2], (ids[2] + 1) % 64, *ids[3:]] if len(ids) > 2 else ids

    monkeypatch.setattr(module, "_greedy", other)
    result = CliRunner().invoke(
        greedy,
        [str(bundle.path), "--prompts", "4", "--new-tokens", "5", "--backend", "onnxruntime"],
    )
    assert result.exit_code == 1
    assert "token 2: " in result.output
    assert "tokens differ from transformers'" in result.output


def test_a_tie_is_no_difference(bundle, monkeypatch):
    tie = Difference(0, 1, 2, 3, 1e-7)
    assert tie.is_tie
    monkeypatch.setattr(module, "_greedy", lambda *_: [1])
    monkeypatch.setattr(module, "_difference", lambda *_: tie)
    options = ["--prompts", "1", "--new-tokens", "2", "--backend", "onnxruntime"]
    shown = CliRunner().invoke(greedy, [str(bundle.path), *options])
    assert shown.exit_code == 0
    assert "0 of 1 texts are transformers'" in shown.output
    assert "a tie" in shown.output
    (document,) = json.loads(
        CliRunner().invoke(greedy, [str(bundle.path), *options, "--json"]).stdout
    )
    assert document["differences"][0]["theirs"] == 2


def test_what_cannot_be_compared(bundle, tmp_path):
    with pytest.raises(FeedError, match="tiny is no graph with a cache in float32"):
        compare_greedy(write_bundle(tmp_path / "tiny"), "onnxruntime")
    with pytest.raises(
        FeedError, match="64 new tokens are asked for, bundle takes 64 with the prompt"
    ):
        compare_greedy(bundle, "onnxruntime", new_tokens=64)

"""A real language model end to end: stories260K, where it lies beside the checkout."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tfx
from tfx.bench.greedy import compare_greedy
from tfx.cli import main
from tfx.export.llama2c import main as convert

SHARED = Path(__file__).parents[3] / "shared"
STORIES = SHARED / "models" / "tiny-github" / "stories260K"
WIKITEXT = SHARED / "data" / "text" / "wikitext2-test.txt"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (STORIES.is_dir() and WIKITEXT.is_file()),
        reason="needs stories260K and WikiText-2 in ../shared",
    ),
]
LINES = 8


def run(*arguments):
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    arguments = [STORIES / "stories260K.bin", STORIES / "tok512.bin", folder / "source"]
    result = CliRunner().invoke(convert, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    run("export", folder / "source", "-o", folder / "stories")
    return tfx.open_bundle(folder / "stories")


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    whole = WIKITEXT.read_text(encoding="utf-8").splitlines()
    texts = (line for line in whole if 40 < len(line) < 400 and " =" not in line[:4])
    path = tmp_path_factory.mktemp("data") / "lines.txt"
    path.write_text("\n".join(next(texts) for _ in range(LINES)), encoding="utf-8")
    return path


def perplexity(bundle, lines):
    shown = run("evaluate", bundle.path, "--eval", lines, "--metric", "perplexity", "--json")
    return json.loads(shown)["evaluation"]["value"]


@pytest.mark.parametrize(("backend", "prompts"), [("onnxruntime", 20), ("openvino", 5)])
def test_it_writes_what_transformers_does(stories, backend, prompts):
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs OpenVINO")
    found = compare_greedy(stories, backend, prompts=prompts, new_tokens=64)
    assert found.tokens > 50 * prompts
    assert [one for one in found.differences if not one.is_tie] == []


def test_it_tells_a_story(stories):
    said = run("generate", stories.path, "-p", "Once upon a time", "--max-new-tokens", 24)
    assert "was" in said
    assert "girl" in said or "boy" in said


def test_four_bits_within_a_budget_of_perplexity(stories, lines, tmp_path):
    before = perplexity(stories, lines)
    asked = ["--calibrate", lines, "--eval", lines, "--metric", "perplexity", "--max-drop", 5]
    run("quantize", stories.path, "-o", tmp_path / "small", "--int4", *asked)
    small = tfx.open_bundle(tmp_path / "small")
    made = small.manifest.quantization
    assert made.kept  # all in 4 bits lose 5.7
    assert made.accuracy[0].metric == "perplexity"
    assert before < perplexity(small, lines) <= before + 5
    with tfx.open_session(small) as session:
        (one,) = session.generate(["Once upon a time"], max_new_tokens=24)
    assert one.text.startswith(", there was")


def test_eight_bits_tell_one_too(stories, lines, tmp_path):
    run("quantize", stories.path, "-o", tmp_path / "int8", "--int8", "--dynamic")
    small = tfx.open_bundle(tmp_path / "int8")
    assert perplexity(small, lines) == pytest.approx(perplexity(stories, lines), rel=0.05)
    with tfx.open_session(small) as session:
        (one,) = session.generate(["Once upon a time"], max_new_tokens=24)
    assert one.text.startswith(", there was")

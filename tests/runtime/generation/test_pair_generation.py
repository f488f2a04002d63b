"""Texts from texts: the two graphs of an encoder-decoder beside transformers' ``generate``."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from support.checkpoints import SPECIAL, WORDS
from support.pairs import write_pair

import tfx
from tfx.cli import main
from tfx.errors import BundleError, FeedError
from tfx.export.pipeline import export_bundles
from tfx.runtime.generation.encoders import encoder_of

# Everything a search is bent by here; Marian's own checkpoints ask for the last three.
GENERATION = {
    "t5": {
        "no_repeat_ngram_size": 3,
        "min_length": 6,
        "length_penalty": 2.0,
        "early_stopping": True,
        "num_beams": 2,
    },
    "marian": {
        "forced_eos_token_id": 3,
        "bad_words_ids": [[0], [3]],
        "renormalize_logits": True,
        "num_beams": 4,
        "min_length": 5,
        "max_length": 24,
    },
}
TASKS = {
    "translation_en_to_de": {"prefix": "alpha beta: "},
    "summarization": {"prefix": "gamma: "},
}


@pytest.fixture(scope="module", params=sorted(GENERATION))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    more = {"task_specific_params": TASKS} if request.param == "t5" else {}
    # As many tokens as the tokenizer has: every text has words.
    source = write_pair(
        folder / "source",
        request.param,
        generation=GENERATION[request.param],
        vocab_size=len(SPECIAL + WORDS),
        **more,
    )
    encoder, decoder = export_bundles(str(source), folder / "made", cache=None)
    return request.param, source, encoder, decoder


@pytest.fixture(scope="module")
def session(pair):
    with tfx.open_session(pair[3]) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(pair):
    name, source, *_ = pair
    classes = {
        "t5": transformers.T5ForConditionalGeneration,
        "marian": transformers.MarianMTModel,
    }
    return classes[name].from_pretrained(source).eval()


def some_prompts(count):
    rng = np.random.default_rng(7)
    return [rng.integers(4, 16, rng.integers(2, 20)).tolist() for _ in range(count)]


def wanted(model, prompts, **options):
    """Tokens that transformers writes for each prompt alone, without the start."""
    found = []
    for ids in prompts:
        given = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), **options
        )
        found.append(given[0, 1:].tolist())
    return found


@pytest.mark.parametrize("beams", [1, 4])
def test_tokens_are_those_of_transformers(session, model, beams):
    prompts = some_prompts(20)
    found = session.generate(prompts, max_new_tokens=16, num_beams=beams)
    expected = wanted(model, prompts, max_new_tokens=16, num_beams=beams, do_sample=False)
    assert [list(one.ids) for one in found] == expected


def test_a_stream_gives_the_same(session):
    prompts = some_prompts(3)
    whole = session.generate(prompts, max_new_tokens=8)
    ids = [[], [], []]
    for token in session.stream(prompts, max_new_tokens=8):
        ids[token.row].append(token.id)
    assert [tuple(one) for one in ids] == [one.ids for one in whole]


def test_what_is_drawn_does_not_depend_on_the_batch(session):
    prompts = some_prompts(3)
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_k": 20, "seed": 3}
    whole = session.generate(prompts, **options)
    for place, prompt in enumerate(prompts):
        others = [[7], [8, 9, 10, 11]][:place]
        assert session.generate([*others, prompt], **options)[place] == whole[place]


def test_translations_are_as_the_model_asks_for_them(pair, session, model):
    name, source, *_ = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    texts = ["alpha beta gamma", "masks of a model and heads"]
    task = "translation_en_to_de" if name == "t5" else ""
    prefix = TASKS[task]["prefix"] if task else ""
    options = {} if name == "marian" else {"max_new_tokens": 19, "num_beams": 1}
    prompts = [tokenizer(prefix + text).input_ids for text in texts]
    expected = [
        tokenizer.decode([one for one in ids if one != 3], skip_special_tokens=True)
        for ids in wanted(model, prompts, do_sample=False, **options)
    ]
    assert all(expected)
    assert session.translate(texts, task=task, **options) == expected
    assert session.translate(texts[0], task=task, **options) == expected[0]
    if task:
        assert session.translate(texts, task="alpha beta:", **options) == expected


def test_a_wish_the_model_cannot_fulfil(pair, session):
    name, *_ = pair
    with pytest.raises(FeedError, match="the model knows no task 'dancing'"):
        session.translate("alpha", task="dancing")
    with pytest.raises(FeedError, match="the model writes no language 'xx'") as caught:
        session.translate("alpha", task="alpha:", target="xx")
    assert caught.value.hint == "Leave it out: the model writes one."
    with pytest.raises(FeedError, match="got int, expected a text or a list of texts"):
        session.translate(3)
    if name == "t5":
        with pytest.raises(FeedError, match="the model has several tasks, and none is named"):
            session.translate("alpha")
    else:
        with pytest.raises(FeedError, match="max_new_tokens is 96, the decoder has places for 95"):
            session.generate([[5, 6]], max_new_tokens=96)
        with pytest.raises(FeedError, match="has 97 tokens"):
            session.generate([[5] * 97], max_new_tokens=4)


def test_the_decoder_names_its_encoder(pair):
    _, _, encoder, decoder = pair
    assert decoder.manifest.encoder.name == encoder.path.name
    assert decoder.manifest.encoder.digest == encoder.digest
    assert encoder_of(decoder).digest == encoder.digest


def test_without_its_encoder_a_decoder_says_so(pair, tmp_path):
    _, _, encoder, decoder = pair
    alone = tmp_path / "alone-decoder"
    shutil.copytree(decoder.path, alone)
    missing = pytest.raises(BundleError, match=r"needs its encoder made-encoder: .* is not there")
    with tfx.open_session(alone) as opened, missing:
        opened.generate([[5, 6]])
    with tfx.open_session(alone, encoder=encoder.path) as opened:
        assert opened.generate([5, 6], max_new_tokens=4).ids
    another = pytest.raises(BundleError, match=r"is not the encoder of .*: its digest is")
    with tfx.open_session(alone, encoder=decoder.path) as opened, another:
        opened.generate([[5, 6]])


def test_a_decoder_that_names_no_encoder(pair):
    _, _, encoder, decoder = pair
    unnamed = dataclasses.replace(
        decoder, manifest=dataclasses.replace(decoder.manifest, encoder=None)
    )
    with pytest.raises(BundleError, match="does not say which encoder it belongs to"):
        encoder_of(unnamed)
    with tfx.open_session(encoder) as opened:
        with pytest.raises(FeedError, match="is no decoder: it has no encoder"):
            opened.encoder()
        with pytest.raises(FeedError, match="is no decoder beside an encoder"):
            opened.translate("alpha")


def test_a_name_is_that_of_its_decoder(pair, session):
    name, _, _, decoder = pair
    given = str(decoder.path).removesuffix("-decoder")
    task = ["--task", "summarization"] if name == "t5" else []
    arguments = [given, "-p", "alpha beta", "--translate", "--max-new-tokens", "9", *task]
    result = CliRunner().invoke(main, ["generate", *arguments])
    expected = session.translate(
        "alpha beta", task="summarization" if name == "t5" else "", max_new_tokens=9
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{expected}\n"
    result = CliRunner().invoke(main, ["generate", *arguments, "--json"])
    assert json.loads(result.stdout)["texts"] == [expected]
    result = CliRunner().invoke(main, ["generate", given, "-p", "alpha", "--max-new-tokens", "4"])
    assert result.stdout.rstrip("\n") == session.generate("alpha", max_new_tokens=4).text


def test_options_of_a_translation_alone(pair):
    path = str(pair[3].path)
    result = CliRunner().invoke(main, ["generate", path, "-p", "a", "--task", "a:"])
    assert result.exit_code == 2
    assert "--task, --source and --target are for --translate" in result.output
    result = CliRunner().invoke(main, ["generate", path, "--chat", "a", "--translate"])
    assert result.exit_code == 2
    assert "--chat is for models that answer, --translate reads texts" in result.output


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_other_backends_write_the_same(pair, session, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    prompts = some_prompts(3)
    with tfx.open_session(pair[3], backend=backend, precision="fp32") as opened:
        for beams in (1, 2):
            options = {"max_new_tokens": 8, "num_beams": beams}
            assert opened.generate(prompts, **options) == session.generate(prompts, **options)


def test_translations_are_scored(pair, session, tmp_path):
    name, *_ = pair
    pytest.importorskip("sacrebleu")
    task = "alpha beta:" if name == "t5" else ""
    texts = ["alpha beta gamma", "masks of a model and heads"]
    said = session.translate(texts, task=task)
    path = tmp_path / "pairs.tsv"
    path.write_text(
        f"source\ttarget\n{texts[0]}\t{said[0]}\n{texts[1]}\tnothing like it\n", encoding="utf-8"
    )
    arguments = ["evaluate", str(pair[3].path), "--eval", str(path), "--task", task, "--json"]
    for metric in ("auto", "chrf"):
        result = CliRunner().invoke(main, [*arguments, "--metric", metric])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)["evaluation"]
        assert found["metric"] == ("bleu" if metric == "auto" else metric)
        assert 0 < found["value"] < 100
        assert found["low"] <= found["value"] <= found["high"]
    result = CliRunner().invoke(main, [*arguments, "--metric", "accuracy"])
    assert result.exit_code == 1
    assert "gives translations, and pairs.tsv holds texts to translate" in result.stderr

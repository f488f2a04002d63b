"""Texts in and out of models whose SentencePiece has a vocabulary of the model's own."""

import pytest
import torch
import transformers
from click.testing import CliRunner
from support.translators import m2m, marian

import tfx
from tfx.cli import main
from tfx.errors import FeedError
from tfx.export.pipeline import export_bundles

MAKERS = {"marian": marian, "m2m": m2m}
TEXTS = ["every morning at seven, we waited", "Zürich ©: kalte Suppe"]
WISHES = {"marian": {"target": "fra"}, "m2m": {"source": "de", "target": "fr"}}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = MAKERS[request.param](folder / "source")
    _, decoder = export_bundles(str(source), folder / "made", cache=None)
    return request.param, source, decoder


@pytest.fixture(scope="module")
def session(pair):
    with tfx.open_session(pair[2]) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(pair):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(pair[1]).eval()


def wanted(pair, model, text, **options):
    """What transformers translates a text to."""
    name, source, _ = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    first = {}
    if name == "marian":
        text = f">>fra<< {text}"
    else:
        tokenizer.src_lang = "de"
        first = {"forced_bos_token_id": tokenizer.get_lang_id("fr")}
    ids = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(**ids, **first, do_sample=False, **options)[0, 1:].tolist()
    languages = getattr(tokenizer, "id_to_lang_token", {})
    words = [one for one in found if one not in languages]
    return tokenizer.decode(words, skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore:Recommended")
@pytest.mark.parametrize("beams", [1, 3])
def test_translations_are_those_of_transformers(pair, session, model, beams):
    options = {"max_new_tokens": 12, "num_beams": beams}
    expected = [wanted(pair, model, text, **options) for text in TEXTS]
    assert all(expected)
    assert session.translate(TEXTS, **WISHES[pair[0]], **options) == expected


def test_languages_change_what_is_written(pair, session):
    name, *_ = pair
    wishes = WISHES[name]
    options = {"max_new_tokens": 20, "num_beams": 1, "repetition_penalty": 5.0}
    written = session.translate(TEXTS[0], **wishes, **options)
    other = {**wishes, "target": "deu" if name == "marian" else "en"}
    assert session.translate(TEXTS[0], **other, **options) != written
    if name == "m2m":
        assert session.translate(TEXTS[0], **{**wishes, "source": "en"}, **options) != written


def test_a_text_may_name_the_language_of_marian(pair, session):
    name, *_ = pair
    options = {"max_new_tokens": 8, "num_beams": 1}
    if name == "marian":
        expected = session.translate(TEXTS[0], target="fra", **options)
        assert session.translate(f">>fra<< {TEXTS[0]}", **options) == expected
        assert session.generate(f">>fra<< {TEXTS[0]}", max_new_tokens=8).text == expected
    for text in (TEXTS[0], f">>xx<< {TEXTS[0]}"):
        with pytest.raises(FeedError, match="the model writes many languages, and none is named"):
            session.translate(text)


def test_a_language_that_the_model_does_not_read(pair, session):
    name, *_ = pair
    with pytest.raises(FeedError, match="the model reads no language 'xx'") as caught:
        session.translate("every", **{**WISHES[name], "source": "xx"})
    hint = "Leave it out: the model reads one." if name == "marian" else "Use one of: af, am"
    assert caught.value.hint.startswith(hint)


def test_the_command_takes_languages(pair, session):
    name, _, decoder = pair
    wishes = WISHES[name]
    given = [part for key, value in wishes.items() for part in (f"--{key}", value)]
    arguments = [str(decoder.path), "-p", TEXTS[0], "--translate", *given, "--max-new-tokens", "6"]
    result = CliRunner().invoke(main, ["generate", *arguments])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{session.translate(TEXTS[0], **wishes, max_new_tokens=6)}\n"

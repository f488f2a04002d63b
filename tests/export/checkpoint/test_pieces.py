import pytest
import transformers
from support.translators import LANGUAGES, WRITTEN, m2m_tokenizer, marian_tokenizer

from tfx.export.checkpoint.pieces import TEXTS, Converted, convert, is_convertible

MAKERS = {"marian": marian_tokenizer, "m2m": m2m_tokenizer}


def ids_of(converted: Converted, text: str) -> list[int]:
    return [
        one if one < converted.known else converted.unknown
        for one in converted.tokenizer.encode(text).ids
    ]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("maker", MAKERS)
def test_texts_have_the_same_tokens(tmp_path, maker, kind):
    slow = MAKERS[maker](tmp_path, kind)
    converted = convert(slow)
    assert isinstance(converted, Converted)
    unknown = slow("Zürich ©").input_ids
    assert slow.unk_token_id in unknown
    for text in (*TEXTS, "Zürich ©", "seven mornings", "Hafen </s> Morgen <unk>"):
        assert ids_of(converted, text) == slow(text).input_ids, text


def test_pieces_that_the_model_does_not_know(tmp_path):
    slow = marian_tokenizer(tmp_path)
    converted = convert(slow)
    (lost, *_) = (
        piece
        for index in range(slow.spm_source.get_piece_size())
        if (piece := slow.spm_source.id_to_piece(index)) not in slow.encoder and piece[1:].isalpha()
    )
    ids = converted.tokenizer.encode(lost.replace("\u2581", " ")).ids
    assert max(ids) >= converted.known
    assert (
        ids_of(converted, lost.replace("\u2581", " "))
        == slow(lost.replace("\u2581", " ")).input_ids
    )


def test_what_is_only_written_is_written_and_never_read(tmp_path):
    slow = marian_tokenizer(tmp_path)
    converted = convert(slow)
    ids = slow.convert_tokens_to_ids([*WRITTEN])
    assert converted.tokenizer.decode(ids) == slow.decode(ids) == "nur geschrieben"
    assert not set(ids) & set(ids_of(converted, "nur geschrieben"))


def test_languages_of_m2m_are_none_of_the_text(tmp_path):
    slow = m2m_tokenizer(tmp_path)
    converted = convert(slow)
    ids = slow("every morning").input_ids
    assert ids[0] == slow.get_lang_id("en")
    assert converted.tokenizer.decode(ids) == "every morning"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"user_defined_symbols": ["<sep>"]}, "its SentencePiece model has symbols of its own"),
        ({"treat_whitespace_as_suffix": True}, "marks spaces in another way"),
        ({"kind": "char"}, "is neither unigram nor BPE"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path, settings, reason):
    assert reason in convert(marian_tokenizer(tmp_path, **settings))


def test_two_vocabularies_are_refused(tmp_path):
    slow = marian_tokenizer(tmp_path)
    slow.separate_vocabs = True
    assert convert(slow) == "it reads and writes with two vocabularies"


def test_a_difference_is_found(tmp_path, monkeypatch):
    slow = marian_tokenizer(tmp_path)
    called = type(slow).__call__
    monkeypatch.setattr(
        type(slow), "__call__", lambda self, text, **more: called(self, text.upper(), **more)
    )
    assert "becomes tokens" in convert(slow)


def test_tokens_that_share_an_id_are_written_otherwise(tmp_path):
    slow = marian_tokenizer(tmp_path)
    slow.encoder["\u2581the"] = slow.encoder["<unk>"]
    assert "become '" in convert(slow)


def test_other_tokenizers_are_not_converted(tmp_path):
    assert is_convertible(marian_tokenizer(tmp_path))
    assert not is_convertible(transformers.ByT5Tokenizer())


def test_languages_of_marian_are_tokens_of_their_own(tmp_path):
    slow = marian_tokenizer(tmp_path)
    assert slow.supported_language_codes == [*LANGUAGES]
    converted = convert(slow)
    for code in LANGUAGES:
        ids = ids_of(converted, f"{code} every morning")
        assert ids == slow(f"{code} every morning").input_ids
        assert ids[0] == slow.encoder[code]
        assert converted.tokenizer.decode(ids) == slow.decode(ids[1:], skip_special_tokens=True)

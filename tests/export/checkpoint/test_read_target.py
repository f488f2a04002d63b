"""What a checkpoint asks of its decoder's texts."""

import pytest
import transformers

from tfx.errors import SourceError
from tfx.export.checkpoint.targets import read_target
from tfx.processing import Target

CONFIG = transformers.T5Config(decoder_start_token_id=0, eos_token_id=1)


def read(folder, **said):
    transformers.GenerationConfig(decoder_start_token_id=0, eos_token_id=1, **said).save_pretrained(
        folder
    )
    return read_target(CONFIG, folder)


def test_what_is_said(tmp_path):
    target, notes = read(
        tmp_path,
        forced_bos_token_id=7,
        forced_eos_token_id=[1],
        min_length=4,
        max_length=60,
        bad_words_ids=[[9], [1]],
        suppress_tokens=[5],
        begin_suppress_tokens=[6],
        no_repeat_ngram_size=3,
        repetition_penalty=1.2,
        num_beams=6,
        length_penalty=0.6,
        early_stopping="never",
        renormalize_logits=True,
    )
    assert target == Target(
        start=0,
        first=7,
        last=1,
        shortest=4,
        longest=60,
        suppressed=(9, 5),
        suppressed_first=(6,),
        ngram=3,
        repetition_penalty=1.2,
        num_beams=6,
        length_penalty=0.6,
        early_stopping="never",
        renormalize=True,
    )
    assert notes == ()


def test_nothing_said_is_nothing_asked(tmp_path):
    target, notes = read(tmp_path)
    assert (target, notes) == (Target(0), ())
    assert read_target(CONFIG, None)[0].start == 0


def test_tasks_of_t5(tmp_path):
    said = {"translation_en_to_de": {"prefix": "to German: "}, "odd": {"length_penalty": 2}}
    config = transformers.T5Config(decoder_start_token_id=0, task_specific_params=said)
    assert read_target(config, None)[0].prefixes == {"translation_en_to_de": "to German: "}


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (
            {"encoder_no_repeat_ngram_size": 3},
            "the checkpoint asks for encoder_no_repeat_ngram_size 3, which is not done",
        ),
        (
            {"bad_words_ids": [[4, 5]]},
            "the checkpoint forbids 1 words of several tokens, which is not done",
        ),
        (
            {"do_sample": True},
            "the checkpoint draws tokens (do_sample); here a temperature asks for it",
        ),
        (
            {"forced_eos_token_id": [1, 2]},
            "of forced_eos_token_id [1, 2] the first alone is forced",
        ),
    ],
)
def test_what_is_not_done_is_said(tmp_path, said, note):
    assert read(tmp_path, **said)[1] == (note,)


def test_a_text_must_begin_with_something():
    config = transformers.T5Config()
    config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(SourceError, match="decoder_start_token_id is None, expected the token"):
        read_target(config, None)


def test_damaged_settings(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"cannot read the generation_config.json of"):
        read_target(CONFIG, tmp_path)


def test_languages_are_the_tokenizers(tmp_path, monkeypatch):
    class Tokenizer:
        lang_code_to_id = {"de_DE": 7, "ro_RO": 9}  # noqa: RUF012

    (tmp_path / "tokenizer_config.json").write_text("{}")
    load = lambda *_, **__: Tokenizer()  # noqa: E731
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    assert read(tmp_path)[0].languages == {"de_DE": 7, "ro_RO": 9}

"""What a Whisper's generation_config.json says of the text it writes."""

import pytest
import transformers
from support.speech import WHISPER, WHISPER_GENERATION, whisper_model

from tfx.errors import SourceError
from tfx.export.checkpoint.dictation import read_dictation
from tfx.processing import Dictation

CONFIG = transformers.WhisperConfig(**WHISPER)
PLAIN = Dictation(81, 80, window=100)


def written(folder, **changes):
    said = {key: one for key, one in (WHISPER_GENERATION | changes).items() if one is not None}
    transformers.GenerationConfig(**said).save_pretrained(folder)
    return folder


def test_all_that_it_says(tmp_path):
    notes = []
    assert read_dictation(CONFIG, written(tmp_path), notes) == Dictation(
        start=81,
        end=80,
        no_times=86,
        languages={"en": 82, "de": 83},
        tasks={"transcribe": 85, "translate": 84},
        suppressed=(3, 7, 81, 82, 83, 84, 85),
        suppressed_first=(5, 80),
        latest_first=10,
        window=100,
    )
    assert notes == []


def test_a_model_of_one_language(tmp_path):
    found = read_dictation(CONFIG, written(tmp_path, is_multilingual=False), [])
    assert found.languages == found.tasks == {}
    assert found.no_times == 86


def test_one_that_says_nothing_of_times_gets_a_note(tmp_path):
    names = ("lang_to_id", "task_to_id", "no_timestamps_token_id", "max_initial_timestamp_index")
    nothing = dict.fromkeys((*names, "suppress_tokens", "begin_suppress_tokens"))
    notes = []
    assert read_dictation(CONFIG, written(tmp_path, **nothing), notes) == PLAIN
    assert notes == ["its generation_config.json names no tokens for times: transcribe gives none"]


def test_without_the_file_the_configuration_says_it(tmp_path):
    config = whisper_model().config
    found = read_dictation(config, tmp_path, [])
    assert (found.start, found.end, found.window) == (81, 80, 100)


def test_other_models_are_left_alone(tmp_path):
    assert read_dictation(transformers.T5Config(), written(tmp_path), []) is None


def test_a_damaged_file(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"cannot read the generation_config\.json of"):
        read_dictation(CONFIG, tmp_path, [])

"""CTC: frames to text, by hand and as transformers' tokenizer spells them."""

import json

import numpy as np
import pytest
import transformers
from support.speech import CTC_TOKENS

from tfx.processing import Transcription
from tfx.runtime.speech.ctc import spoken
from tfx.runtime.speech.sounds import joined_frames

SAID = Transcription("logits", CTC_TOKENS, 0, "|")
_, E, T, A, O = (CTC_TOKENS.index(one) for one in ("<pad>", *"ETAO"))  # noqa: E741
BLANK, SPACE = 0, CTC_TOKENS.index("|")


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], ""),
        ([BLANK, BLANK], ""),
        ([T, T, A, A, A], "TA"),
        ([T, BLANK, T, E], "TTE"),
        ([SPACE, T, SPACE, SPACE, A, SPACE], "T A"),
        ([T, SPACE, BLANK, SPACE, O], "T  O"),
        ([1, T, 3], "<s>T<unk>"),
    ],
)
def test_frames_to_text(frames, text):
    assert spoken(np.array(frames, np.int64), SAID) == text


@pytest.mark.parametrize("lower", [False, True])
def test_as_transformers_spells_them(lower, tmp_path, rng):
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps({token: i for i, token in enumerate(CTC_TOKENS)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(file), do_lower_case=lower)
    said = Transcription("logits", (*CTC_TOKENS, "<unk>"), 0, "|", lower)
    for _ in range(20):
        ids = rng.integers(0, len(said.tokens), 50).repeat(rng.integers(1, 3, 50))
        assert spoken(ids, said) == tokenizer.decode(ids.tolist())


def test_without_a_delimiter_nothing_is_a_space():
    said = Transcription("logits", ("<pad>", "a", ""), 0, "")
    assert spoken(np.array([1, 2, 1]), said) == "aa"


def test_frames_of_windows_come_from_the_one_they_are_amid():
    whole = np.arange(23)
    starts = [0, 6, 12, 18]
    parts = [whole[start : start + 10] + 100 * index for index, start in enumerate(starts)]
    found = joined_frames(parts, starts)
    np.testing.assert_array_equal(found % 100, whole)
    # Windows 0 and 1 share frames 6 to 9: the first two are nearer the middle of window 0.
    assert (found // 100).tolist() == [0] * 8 + [1] * 6 + [2] * 6 + [3] * 3

import re

import pytest
from support.sentences import write_data

from tfx.bench.peers.sentences import read_sentences
from tfx.errors import DataError


def test_texts_are_of_three_kinds_and_each_is_used_once(tmp_path):
    texts = read_sentences(write_data(tmp_path), 40)
    assert len(texts) == 40
    prose = [text for text in texts if "prose" in text]
    counts = [text.count("sentence") for text in texts if text not in prose]
    assert len(prose) == 10
    assert counts.count(1) == 20
    assert sorted(counts)[20] >= 3
    assert max(counts) <= 12
    words = " ".join(texts).split()
    used = [words[at + 1] for at, word in enumerate(words) if word == "sentence"]
    assert len(set(used)) == len(used)
    assert not any("Heading" in text or "label" in text for text in texts)


def test_the_draw_is_the_seeds(tmp_path):
    data = write_data(tmp_path)
    assert read_sentences(data, 20) == read_sentences(data, 20)
    assert read_sentences(data, 20) != read_sentences(data, 20, seed=1)


def test_what_is_skipped_is_in_none_of_the_others(tmp_path):
    data = write_data(tmp_path)
    first, others = read_sentences(data, 20), read_sentences(data, 20, skip=20)
    assert len(others) == 20
    numbers = [
        set(re.findall(r"(sentence|line) (\d+)", " ".join(some))) for some in (first, others)
    ]
    assert not numbers[0] & numbers[1]
    assert others == read_sentences(data, 20, skip=20)


def test_too_few_texts_are_said(tmp_path):
    with pytest.raises(DataError) as raised:
        read_sentences(write_data(tmp_path), 4000)
    assert str(raised.value) == (
        f"{tmp_path} has 200 sentences and 40 lines of prose left: got 4000 texts to make, "
        "expected fewer"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError) as raised:
        read_sentences(tmp_path, 4)
    assert str(raised.value) == (
        f"{tmp_path / 'sst2/dev.tsv'} cannot be read: No such file or directory"
    )
    assert raised.value.hint == (
        "Give a folder that has sst2/dev.tsv, sst2/train.tsv, text/wikitext2-test.txt."
    )

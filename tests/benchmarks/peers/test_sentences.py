import pytest

from tfx.bench.peers.sentences import read_sentences
from tfx.errors import DataError


def write_data(folder, sentences=200, prose=40):
    (folder / "sst2").mkdir(parents=True)
    (folder / "text").mkdir()
    lines = [f"sentence {index} of many\t1" for index in range(sentences)]
    half = sentences // 2
    (folder / "sst2/dev.tsv").write_text("\n".join(["sentence\tlabel", *lines[:half]]) + "\n")
    (folder / "sst2/train.tsv").write_text("\n".join(["sentence\tlabel", *lines[half:]]) + "\n")
    text = "\n".join(f" \n = Heading = \n line {index} of prose " for index in range(prose))
    (folder / "text/wikitext2-test.txt").write_text(text)
    return folder


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


def test_too_few_texts_are_said(tmp_path):
    with pytest.raises(DataError) as raised:
        read_sentences(write_data(tmp_path), 4000)
    assert str(raised.value) == (
        f"{tmp_path} has 200 sentences and 40 lines of prose: got 4000 texts to make, "
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

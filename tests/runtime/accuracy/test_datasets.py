"""Datasets: every format read as it is meant, every damage named, two uses kept apart."""

import io
import json

import numpy as np
import pytest

from tfx.errors import DataError
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.samples import Dataset, DatasetKind


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(tmp_path, name, content, **options):
    return read_dataset(write(tmp_path, name, content), **options)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def squad(*qas, context="Ada met Charles in London."):
    asked = [{"question": q, "answers": [{"text": a} for a in answers]} for q, answers in qas]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]})


def texts(count):
    return "sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(count))


def test_sentences_and_classes(tmp_path):
    data = read(tmp_path, "dev.tsv", 'sentence\tlabel\n"it is" good\t1\r\n\nbad , bad\t0\n')
    assert data.kind is DatasetKind.TEXTS
    assert data.texts == ('"it is" good', "bad , bad")  # nothing is quoted in TSV
    assert data.labels == (1, 0)
    assert (data.name, data.columns) == ("dev.tsv", ("sentence", "label"))


def test_pairs_and_scores_in_any_order(tmp_path):
    data = read(tmp_path, "dev.tsv", "score\tsentence1\tsentence2\n5.000\ta\tb\n0.25\tc\td\n")
    assert data.kind is DatasetKind.PAIRS
    assert data.texts == (("a", "b"), ("c", "d"))
    assert data.labels == (5.0, 0.25)
    assert data.columns == ("sentence1", "sentence2", "score")


def test_csv_may_quote(tmp_path):
    data = read(tmp_path, "a.csv", 'Text,Label\n"a, ""b""\nc",pos\nd,neg\n')
    assert data.texts == ('a, "b"\nc', "d")
    assert data.labels == ("pos", "neg")


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("text", DatasetKind.TEXTS),
        ("question\tlabel", DatasetKind.TEXTS),
        ("premise\thypothesis", DatasetKind.PAIRS),
        ("qid\tquestion1\tquestion2\tis_duplicate", DatasetKind.PAIRS),
        ("index\tquestion\tsentence\tlabel", DatasetKind.PAIRS),
    ],
)
def test_columns_are_known_by_name(tmp_path, header, kind):
    row = "\t".join("1" for _ in header.split("\t"))
    data = read(tmp_path, "a.tsv", f"{header}\n{row}\n")
    assert data.kind is kind
    assert (data.labels is None) == (not header.endswith(("label", "is_duplicate")))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "1"], (0, 1)),
        (["-1", " 2 "], (-1, 2)),
        (["0", "1.5"], (0.0, 1.5)),
        (["1e-3", ".5"], (0.001, 0.5)),
        (["1", "nan"], ("1", "nan")),
        (["1", "1e999"], ("1", "1e999")),
        (["1_000", "2"], ("1_000", "2")),
        (["pos", "1"], ("pos", "1")),
    ],
)
def test_labels_are_numbers_where_all_are(tmp_path, labels, expected):
    data = read(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"x\t{one}\n" for one in labels))
    assert data.labels == expected
    assert [type(one) for one in data.labels] == [type(one) for one in expected]


def test_strings_and_objects_a_line(tmp_path):
    assert read(tmp_path, "a.jsonl", '"one"\n"two"\n').texts == ("one", "two")
    data = read(tmp_path, "b.jsonl", '{"text": "a", "text_pair": "b", "label": "yes"}\n')
    assert data.texts == (("a", "b"),)
    assert data.labels == ("yes",)
    numbers = read(tmp_path, "c.jsonl", '{"text": "a", "score": 1}\n{"text": "b", "score": 0.5}\n')
    assert numbers.labels == (1.0, 0.5)


def test_lines_without_a_word_are_no_sample(tmp_path):
    data = read(tmp_path, "a.txt", " = Title = \n \n\nA text .\n")
    assert data.texts == (" = Title = ", "A text .")
    assert data.labels is None


def test_words_and_tags(tmp_path):
    content = "-DOCSTART- -X- O\n\nAda\tB-person\nLovelace\tI-person\nsaw\tO\n\nParis NNP B-place\n"
    data = read(tmp_path, "dev.conll", content)
    assert data.kind is DatasetKind.TOKENS
    assert data.texts == ("Ada Lovelace saw", "Paris")
    assert data.labels == (("B-person", "I-person", "O"), ("B-place",))


def test_questions_and_answers(tmp_path):
    data = read(tmp_path, "a.json", squad(("Who?", ["Ada", "Ada L."]), ("Where?", ["London"])))
    assert data.kind is DatasetKind.QUESTIONS
    assert data.texts[1] == ("Where?", "Ada met Charles in London.")
    assert data.labels == (("Ada", "Ada L."), ("London",))


def test_arrays_are_feeds(tmp_path):
    ids = np.arange(6).reshape(3, 2)
    data = read(tmp_path, "a.npz", npz(input_ids=ids, labels=np.array([0, 1, 0], np.uint8)))
    assert data.kind is DatasetKind.FEEDS
    assert len(data) == 3
    assert data.labels == (0, 1, 0)
    np.testing.assert_array_equal(data.take([2, 0]).arrays["input_ids"], ids[[2, 0]])
    assert data.take([2, 0]).labels == (0, 0)


def test_images(tmp_path):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    content = npz(images=images, labels=[1, 0], files=["a", "b"], classes=["cat", "dog"])
    data = read(tmp_path, "a.npz", content)
    assert data.kind is DatasetKind.IMAGES
    assert (data.labels, data.classes) == ((1, 0), ("cat", "dog"))
    assert list(data.arrays) == ["images"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "a.tsv is empty, expected at least one sample"),
        ("a.tsv", "sentence\tlabel\n", "a.tsv is empty, expected at least one sample"),
        ("a.jsonl", "", "a.jsonl is empty, expected at least one sample"),
        ("a.txt", "\n \n", "a.txt is empty, expected at least one sample"),
        ("a.conll", "\n\n", "a.conll is empty, expected at least one sample"),
        ("a.json", '{"data": []}', "a.json is empty, expected at least one sample"),
        (
            "a.tsv",
            "id\tbody\n1\tx\n",
            "a.tsv has no column of text: got 'id', 'body', expected a header with sentence or "
            "sentence1 and sentence2",
        ),
        (
            "a.jsonl",
            '{"body": "x"}\n',
            "a.jsonl has no column of text: got 'body', expected objects with sentence or "
            "sentence1 and sentence2",
        ),
        ("a.tsv", "text\ttext\na\tb\n", "a.tsv has two columns called 'text'"),
        (
            "a.tsv",
            "text\tlabel\na\t1\nb\n",
            "a.tsv, line 3: got 1 columns, expected 2 as in the header",
        ),
        ("a.csv", 'text,label\n"a,1\n', "a.csv, line 2: damaged: unexpected end of data"),
        ("a.tsv", b"text\nab\xe4\n", "a.tsv, line 2: not UTF-8: byte 0xe4 at 2"),
        (
            "a.tsv",
            "text\tlabel\na\t1\nb\t\n",
            "a.tsv, line 3: label is empty, expected a number or a name",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b"}\n',
            "a.jsonl, line 2: no field 'label', it has: 'text'",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": [1]}\n',
            "a.jsonl, line 1: label is [1], expected a number or a name",
        ),
        (
            "a.jsonl",
            '{"text": 3}\n',
            "a.jsonl, line 1: got int, expected a string or a pair of strings",
        ),
        ("a.jsonl", '{"text": "a"', "a.jsonl, line 1: not JSON: Expecting"),
        ("a.conll", "Ada\n", "a.conll, line 1: got 'Ada', expected a word, a tab and its tag"),
        (
            "a.conll",
            "Ada\tO\nB\tS-place\n",
            "a.conll, line 2: got the tag 'S-place', expected O, or B- or I- and a type",
        ),
        ("a.json", '{"data": [{"par', "a.json is not JSON: Unterminated string"),
        ("a.json", b'{"data": "\xff"}', "a.json is not UTF-8: invalid start byte at 10"),
        ("a.json", '{"rows": []}', "a.json is not SQuAD: expected data[].paragraphs[].qas[]."),
        (
            "a.json",
            squad(("Who?", ["Ada"]), ("Why?", [])),
            "a.json, question 2: has no answer, expected version 1.1, where each has one",
        ),
        ("a.json", squad(("Who?", [3])), "a.json, question 1: has an answer that is no text"),
        (
            "a.json",
            squad((3, ["Ada"])),
            "a.json, question 1: got a pair with a int, expected a pair of strings",
        ),
        ("a.npz", npz(x=np.zeros(1000))[:-200], "a.npz is not an npz file of plain arrays"),
        ("a.npz", npz(labels=np.zeros(2)), "a.npz has no inputs: got labels, expected arrays"),
        ("a.npz", npz(), "a.npz has no inputs: got no arrays, expected arrays named as"),
        (
            "a.npz",
            npz(x=np.zeros((3, 2)), labels=np.zeros(2)),
            "a.npz: the arrays differ in samples, their first axis: x [3, 2], labels [2]",
        ),
        ("a.npz", npz(x=np.float32(1)), "a.npz: the arrays differ in samples, their first axis:"),
        (
            "a.npz",
            npz(x=np.zeros(2), labels=np.zeros((2, 3))),
            "a.npz: labels are [2, 3], expected one for each sample: [samples]",
        ),
        (
            "a.npz",
            npz(images=np.zeros((2, 3, 4, 4))),
            "a.npz: images are float64[2, 3, 4, 4], expected uint8 of [samples, height, width, 3]",
        ),
        ("a.npz", npz(x=np.zeros((0, 2))), "a.npz is empty, expected at least one sample"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_missing_columns_have_a_hint_with_the_names(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, "a.tsv", "a film\t1\n")
    assert caught.value.hint.startswith("Name one of: sentence, text, question; or two of: ")


def test_a_file_of_another_kind(tmp_path):
    with pytest.raises(
        DataError, match=r"its suffix is '\.xml', expected one of \.tsv, "
    ) as caught:
        read(tmp_path, "a.xml", "")
    assert caught.value.hint == "Rename it after what it holds."


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        read_dataset(tmp_path / "no.tsv")


def test_one_sample_is_a_dataset(tmp_path):
    assert len(read(tmp_path, "a.tsv", texts(1))) == 1


def test_texts_are_not_arrays(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt holds texts, expected arrays"):
        _ = read(tmp_path, "a.txt", "x").arrays
    with pytest.raises(DataError, match=r"a\.npz holds feeds, expected texts"):
        _ = read(tmp_path, "a.npz", npz(x=np.zeros(2))).texts


def test_a_sample_is_seeded_and_keeps_the_order(tmp_path):
    path = write(tmp_path, "a.tsv", texts(50))
    some = read_dataset(path, limit=10, seed=3)
    assert some.texts == read_dataset(path).sample(10, seed=3).texts
    rows = [int(text.split()[1]) for text in some.texts]
    assert len(set(rows)) == 10
    assert rows == sorted(rows)
    assert rows != list(range(10))
    assert some.labels == tuple(row % 2 for row in rows)
    assert some.texts != read_dataset(path, limit=10, seed=4).texts
    assert read_dataset(path, limit=80).texts == read_dataset(path).texts
    with pytest.raises(DataError, match=r"samples wanted of a\.tsv are 0, expected 1 or more"):
        read_dataset(path, limit=0)


def test_the_two_sides_of_a_split_share_nothing(tmp_path):
    data = read(tmp_path, "a.tsv", texts(40))
    first, rest = data.split(15, seed=1)
    assert (len(first), len(rest)) == (15, 25)
    assert set(first.texts) | set(rest.texts) == set(data.texts)
    assert first.common(rest) == 0
    assert first.common(data) == 15
    again, _ = data.split(15, seed=1)
    assert again.digest == first.digest
    assert data.split(15, seed=2)[0].digest != first.digest


def test_repeated_samples_stay_on_one_side(tmp_path):
    content = "text\tlabel\n" + "".join(f"same {i % 4}\t{i}\n" for i in range(40))
    for seed in range(5):
        first, rest = read(tmp_path, "a.tsv", content).split(12, seed=seed)
        assert len(first) == 20
        assert not set(first.texts) & set(rest.texts)


def test_arrays_are_split_too(tmp_path):
    x = np.repeat(np.arange(4.0), 3).reshape(12, 1)
    first, rest = read(tmp_path, "a.npz", npz(x=x, y=np.ones(12))).split(3)
    assert (len(first), len(rest)) == (3, 9)
    assert not set(first.arrays["x"].ravel()) & set(rest.arrays["x"].ravel())


@pytest.mark.parametrize(
    ("rows", "count", "message"),
    [
        (1, 1, "cannot keep two uses of a.tsv apart: 1 of 1 different samples would leave"),
        (5, 0, "cannot keep two uses of a.tsv apart: 0 of 5 different samples would leave"),
        (5, 5, "cannot keep two uses of a.tsv apart: 5 of its 5 samples leave none for the other"),
    ],
)
def test_a_split_without_two_sides(tmp_path, rows, count, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, "a.tsv", texts(rows)).split(count)
    assert str(caught.value).startswith(message)
    assert "file of its own" in caught.value.hint


def test_the_digest_is_of_content_and_order(tmp_path):
    data = read(tmp_path, "a.tsv", texts(4))
    same = read(tmp_path, "b.jsonl", '{"text":"text 0","label":0}\n{"text":"text 1","label":1}\n')
    assert data.take([0, 1]).digest == same.digest
    others = [
        data,
        data.take([1, 0]),
        data.take([0, 3]),
        Dataset("a", DatasetKind.TEXTS, ("text 0", "text 1"), (1, 1)),
        Dataset("a", DatasetKind.TEXTS, ("text 0", "text 1"), None),
        Dataset("a", DatasetKind.TEXTS, ("text 0text 1",), (0,)),
        Dataset("a", DatasetKind.PAIRS, (("text 0", "text 1"),), (0,)),
        Dataset("a", DatasetKind.FEEDS, {"x": np.zeros((2, 1))}, (0, 1)),
        Dataset("a", DatasetKind.FEEDS, {"x": np.zeros((2, 1), "f4")}, (0, 1)),
        Dataset("a", DatasetKind.FEEDS, {"y": np.zeros((2, 1))}, (0, 1)),
    ]
    digests = {one.digest for one in others}
    assert len(digests) == len(others)
    assert same.digest not in digests

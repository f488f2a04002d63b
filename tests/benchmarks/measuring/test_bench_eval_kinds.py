"""Accuracy beside speed on every kind of data, of tiny checkpoints with the head it is for."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image
from support.checkpoints import bert, vit, write_json, write_sentence_transformers

from tfx.bench.measuring.accuracy import Judge
from tfx.bench.measuring.worker import ProcessWorker, Server
from tfx.bench.measuring.workload import Plan, Shape, Way
from tfx.console import Progress
from tfx.export.pipeline import export_bundle

TEXTS = [f"{word} is {other}" for word in ("a", "the", "this") for other in ("b", "c", "d", "good")]
SHAPE = Shape({"batch": 1, "sequence": 8})


class Here:
    """In place of a row's process: the same questions, answered in this one."""

    limit_s = 60.0

    def __init__(self):
        self.server = Server()

    def start(self):
        pass

    def ask(self, extra_s=0, on_progress=lambda count: None, /, **question):
        self.server.tell = on_progress
        return json.loads(json.dumps(self.server.answer(question)))

    def close(self):
        pass


def worker(*arguments):
    made = ProcessWorker(*arguments)
    made.child.close()
    made.child = Here()
    return made


def exported(root, checkpoint):
    return export_bundle(str(checkpoint), root / "bundle")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    root = tmp_path_factory.mktemp("classifier")
    return exported(root, bert(root / "from", transformers.BertForSequenceClassification))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    root = tmp_path_factory.mktemp("scorer")
    return exported(
        root, bert(root / "from", transformers.BertForSequenceClassification, num_labels=1)
    )


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    root = tmp_path_factory.mktemp("embedder")
    return exported(root, write_sentence_transformers(bert(root / "from")))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = tmp_path_factory.mktemp("reader")
    return exported(root, bert(root / "from", transformers.BertForQuestionAnswering))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    root = tmp_path_factory.mktemp("tagger")
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    checkpoint = bert(root / "from", transformers.BertForTokenClassification, id2label=names)
    return exported(root, checkpoint)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    root = tmp_path_factory.mktemp("vision")
    folder = vit(root / "from", id2label={0: "cat", 1: "dog"})
    said = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    write_json(folder / "preprocessor_config.json", said)
    return exported(root, folder)


def judged(bundle, data, **plan):
    judge = Judge(Plan(threads=1, data=str(data), **plan), Progress(), worker)
    try:
        return [judge.judge(bundle, Way(one), SHAPE) for one in ("torch", "onnxruntime")]
    finally:
        judge.close()


def rows_of(bundle, data, **plan):
    """The accuracy of both rows."""
    rows = judged(bundle, data, **plan)
    assert [row.reason for row in rows] == ["", ""]
    return [row.accuracy for row in rows]


def assert_as_pytorch(rows, metric, samples):
    """The metric has an interval, and ONNX Runtime's answers are PyTorch's."""
    first, second = rows
    for row in rows:
        assert (row.metric, row.samples) == (metric, samples)
        assert row.low <= row.value <= row.high
    assert first.low < first.high
    assert first.change is None
    assert second.value == pytest.approx(first.value, abs=1e-5)
    assert second.change.against == "bundle on torch"
    assert abs(second.change.value) < 1e-5


def table(path, rows, between):
    path.write_text("\n".join(between.join(map(str, row)) for row in rows) + "\n")
    return path


@pytest.mark.parametrize(("suffix", "between"), [(".tsv", "\t"), (".csv", ",")])
def test_tables_of_classes(classifier, tmp_path, suffix, between):
    rows = [("sentence", "label"), *((text, at % 2) for at, text in enumerate(TEXTS))]
    data = table(tmp_path / f"dev{suffix}", rows, between)
    assert_as_pytorch(rows_of(classifier, data), "accuracy", 12)


def test_lines_of_json(classifier, tmp_path):
    data = tmp_path / "dev.jsonl"
    lines = [json.dumps({"text": text, "label": at % 2}) for at, text in enumerate(TEXTS)]
    data.write_text("\n".join(lines))
    assert_as_pytorch(rows_of(classifier, data, metric="f1-macro"), "f1-macro", 12)


def pairs(path):
    rows = [(text, TEXTS[at - 1], at % 6 - 0.5) for at, text in enumerate(TEXTS)]
    return table(path, [("sentence1", "sentence2", "score"), *rows], "\t")


def test_scores_of_pairs_by_embeddings(embedder, tmp_path):
    data = pairs(tmp_path / "sts.tsv")
    # Ranks of texts that are almost alike would differ with the last bit.
    assert_as_pytorch(rows_of(embedder, data, metric="pearson"), "pearson", 12)
    assert rows_of(embedder, data)[0].metric == "spearman"


def test_scores_of_pairs_by_one_logit(scorer, tmp_path):
    data = pairs(tmp_path / "sts.tsv")
    assert_as_pytorch(rows_of(scorer, data, metric="pearson"), "pearson", 12)


@pytest.mark.parametrize("metric", ["exact-match", "squad-f1"])
def test_answers_to_questions(reader, tmp_path, metric):
    asked = [
        {"question": "a b", "answers": [{"text": answer}]}
        for answer in ("this is a", "the good", "d", "c", "is the b", "a")
    ]
    paragraph = {"context": "this is a long text with the good a b c d", "qas": asked}
    data = tmp_path / "dev.json"
    write_json(data, {"data": [{"paragraphs": [paragraph]}]})
    rows = rows_of(reader, data, metric=metric)
    for row in rows:
        assert (row.metric, row.samples) == (metric, 6)
        assert 0 <= row.low <= row.value <= row.high
    assert rows[1].value == rows[0].value


def test_tags_of_words(tagger, tmp_path):
    sentences = [text.split() for text in TEXTS]
    tags = ("B-PER", "I-PER", "O")
    lines = [
        "\n".join(f"{word}\t{tags[(at + place) % 3]}" for place, word in enumerate(words))
        for at, words in enumerate(sentences)
    ]
    # A tag I- after O is not how an entity begins, but files have it.
    data = tmp_path / "dev.conll"
    data.write_text("\n\n".join(lines) + "\n")
    assert_as_pytorch(rows_of(tagger, data), "entity-f1", 12)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same images as an npz, a folder for each class, and a folder with a file of labels."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    images = small.repeat(6, axis=1).repeat(6, axis=2)
    names = ["dog" if at % 2 else "cat" for at in range(20)]
    np.savez(root / "all.npz", images=images, labels=[at % 2 for at in range(20)])
    lines = ["file,label"]
    for at, (image, name) in enumerate(zip(images, names, strict=True)):
        (root / "classes" / name).mkdir(parents=True, exist_ok=True)
        (root / "listed").mkdir(exist_ok=True)
        Image.fromarray(image).save(root / "classes" / name / f"{at:02}.png")
        Image.fromarray(image).save(root / "listed" / f"{at:02}.png")
        lines.append(f"{at:02}.png,{name}")
    (root / "listed" / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("data", ["all.npz", "classes", "listed"])
def test_images(vision, pictures, data):
    rows = rows_of(vision, pictures / data)
    assert_as_pytorch(rows, "accuracy", 20)
    # The same images, however they are stored, are judged alike.
    assert rows[0].value == rows_of(vision, pictures / "all.npz")[0].value


def test_images_of_several_sizes_are_each_prepared_alone(vision, pictures, tmp_path):
    before = rows_of(vision, pictures / "classes", metric="agreement")
    for at, size in enumerate(((30, 24), (60, 48), (20, 40))):
        Image.new("RGB", size, (10 * at, 200, 90)).save(tmp_path / f"{at}.png")
    rows = rows_of(vision, tmp_path, samples=3)
    assert [(row.metric, row.value, row.samples) for row in rows] == [("agreement", 1.0, 3)] * 2
    assert [row.value for row in before] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("bundle", "metric", "value"),
    [("classifier", "auto", 1), ("classifier", "kl", 0), ("embedder", "auto", 1)],
)
def test_without_labels_rows_agree_with_pytorch(bundle, metric, value, tmp_path, request):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS))
    rows = rows_of(request.getfixturevalue(bundle), data, metric=metric)
    named = {"auto": {"classifier": "agreement", "embedder": "cosine"}[bundle]}
    for row in rows:
        assert row.metric == named.get(metric, metric)
        assert row.value == pytest.approx(value, abs=1e-5)


def test_classes_that_are_not_the_models(vision, tmp_path):
    for name in ("Katze", "Hund"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "a.png")
    for row in judged(vision, tmp_path):
        assert row.accuracy is None
        assert "are not the model's: got 'Hund', 'Katze', expected 'cat', 'dog', or 0 to 1" in (
            row.reason
        )

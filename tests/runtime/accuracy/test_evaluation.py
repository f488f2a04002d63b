"""Evaluation: the number that the outputs make, its interval, and what cannot be measured."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from support.texts import (
    MEAN,
    WORDS,
    logits_table,
    tiny_vectors,
    write_classifier,
    write_reader,
    write_text_bundle,
)

import tfx
from tfx.errors import BundleError, DataError
from tfx.processing import Activation
from tfx.recipe import Source, SourceKind
from tfx.runtime.accuracy.evaluation import (
    Evaluation,
    compare_evaluations,
    evaluate,
    record,
)
from tfx.runtime.accuracy.fitting import metric_for
from tfx.runtime.accuracy.observations import NotFiniteError
from tfx.runtime.accuracy.samples import Dataset, DatasetKind

USED = WORDS[4:]


def open_session(bundle):
    return tfx.open_session(bundle, backend="onnxruntime", threads=1)


def texts(*inputs, labels=None, kind=DatasetKind.TEXTS):
    return Dataset("dev.tsv", kind, inputs, labels, ("text",) + ("label",) * (labels is not None))


def ids_of(text):
    return [1, *(WORDS.index(word) for word in text.split()), 2]


def embedding_of(text):
    vector = tiny_vectors(ids_of(text)).mean(axis=0)
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Says of a text what the table says of its first word."""
    with open_session(write_classifier(tmp_path_factory.mktemp("c") / "classifier")) as session:
        yield session


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    bundle = write_text_bundle(tmp_path_factory.mktemp("e") / "embedder", embedding=MEAN)
    with open_session(bundle) as session:
        yield session


def test_accuracy_by_number_and_by_name(classifier):
    right = [int(logits_table(2)[WORDS.index(word)].argmax()) for word in USED]
    labels = [right[0], 1 - right[1], *right[2:]]
    seen = []

    found = evaluate(classifier, texts(*USED, labels=tuple(labels)), on_progress=seen.append)

    assert (found.metric, found.samples, found.data) == ("accuracy", 8, "dev.tsv")
    assert found.value == 7 / 8
    assert found.low < found.value <= found.high == 1
    assert found.rows[:, 0].tolist() == [1, 0, 1, 1, 1, 1, 1, 1]
    assert found.backend == str(classifier.report.facts)
    assert (found.bundle, found.reference) == ("classifier", "")
    assert found.bundle_digest == classifier.bundle.digest
    assert found.warnings == ("8 samples only: too few for an interval to be trusted",)
    assert sum(seen) == 8
    names = tuple(("bad", "Good")[label] for label in labels)
    assert evaluate(classifier, texts(*USED, labels=names)).value == 7 / 8
    floats = tuple(map(float, labels))
    assert evaluate(classifier, texts(*USED, labels=floats), "f1").metric == "f1"


def test_classes_the_file_names_are_found_by_name(classifier):
    right = [int(logits_table(2)[WORDS.index(word)].argmax()) for word in USED]
    feeds = {
        "input_ids": np.array([ids_of(word) for word in USED]),
        "attention_mask": np.ones((8, 3), np.int64),
    }
    swapped = tuple(1 - label for label in right)
    data = Dataset("a.npz", DatasetKind.FEEDS, feeds, swapped, classes=("GOOD", "bad"))
    assert evaluate(classifier, data).value == 1
    others = dataclasses.replace(data, classes=("cat", "dog"))  # then numbers are places
    assert evaluate(classifier, others).value == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ("pos", "bad"),
            "the labels of dev.tsv are not the model's: got 'bad', 'pos', expected 'bad', 'good', "
            "or 0 to 1",
        ),
        ((0, 2), "the labels of dev.tsv are not the model's: got '0', '2', expected "),
        ((0.5, 1.0), "the labels of dev.tsv are not the model's: got '0.5', '1.0', expected "),
        ((-1, 0), "the labels of dev.tsv are not the model's: got '-1', '0', expected "),
    ],
)
def test_labels_of_another_model(classifier, labels, message):
    with pytest.raises(DataError) as caught:
        evaluate(classifier, texts("a", "b", labels=labels))
    assert str(caught.value).startswith(message)
    assert caught.value.hint == "Rename those of the file, or choose data of the model's task."


def test_many_names_are_not_all_shown(classifier):
    labels = tuple(f"topic {i:02}" for i in range(30))
    with pytest.raises(DataError, match="'topic 11' and 18 more, expected 'bad', 'good'"):
        evaluate(classifier, texts(*["a"] * 30, labels=labels))


def test_cosines_of_pairs_against_scores(embedder, rng):
    pairs = [(" ".join(rng.choice(USED, 3)), " ".join(rng.choice(USED, 2))) for _ in range(40)]
    gold = tuple(rng.normal(size=40).tolist())
    cosines = [embedding_of(a) @ embedding_of(b) for a, b in pairs]
    data = texts(*pairs, labels=gold, kind=DatasetKind.PAIRS)

    found = evaluate(embedder, data)

    assert found.metric == "spearman"
    assert found.value == pytest.approx(scipy.stats.spearmanr(cosines, gold).statistic)
    np.testing.assert_allclose(found.rows, np.stack([cosines, gold], axis=1), rtol=1e-5)
    assert found.low < found.value < found.high
    pearson = evaluate(embedder, data, "pearson")
    assert pearson.value == pytest.approx(scipy.stats.pearsonr(cosines, gold).statistic)


def test_scores_that_are_names(embedder):
    data = texts(("a", "b"), ("b", "a"), labels=("4.5", "high"), kind=DatasetKind.PAIRS)
    with pytest.raises(DataError) as caught:
        evaluate(embedder, data)
    assert str(caught.value) == ("the labels of dev.tsv are not numbers: got '4.5' for sample 1")
    assert caught.value.hint == "Choose a metric for what the labels are, with --metric."


def test_equal_predictions_correlate_with_nothing_and_are_named(embedder):
    data = texts(*[("a", "a")] * 40, labels=tuple(range(40)), kind=DatasetKind.PAIRS)
    found = evaluate(embedder, data)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.warnings == ("all predictions are equal: nothing correlates with them",)


def test_a_score_of_one_class(tmp_path):
    bundle = write_classifier(tmp_path / "r", labels=("score",), activation=Activation.NONE)
    gold = tuple(logits_table(1)[4:12, 0].astype(float).tolist())
    with open_session(bundle) as session:
        found = evaluate(session, texts(*USED, labels=gold))
    assert (found.metric, found.value) == ("spearman", pytest.approx(1))


def test_entities(tmp_path):
    names = ("O", "B-A", "I-A")
    bundle = write_classifier(tmp_path / "ner", labels=names, per_token=True)
    best = {word: names[int(logits_table(3)[WORDS.index(word)].argmax())] for word in USED}
    sentence = " ".join(USED)
    own = tuple(best[word] for word in USED)
    with open_session(bundle) as session:
        data = texts(sentence, "a b", labels=(own, ("B-A", "B-A")), kind=DatasetKind.TOKENS)
        found = evaluate(session, data)
        long = " ".join(["a"] * 40)  # the model takes 16 tokens, two of them special
        cut = evaluate(
            session,
            texts(long, sentence, labels=(("O",) * 40, own), kind=DatasetKind.TOKENS),
        )
        short = evaluate(session, data)  # what was cut before is not its own
        with pytest.raises(DataError) as caught:
            evaluate(session, texts("a", labels=(("B-B",),), kind=DatasetKind.TOKENS))
    assert found.metric == "entity-f1"
    hits, predicted, expected = found.rows[0]
    assert hits == predicted == expected > 0
    assert (cut.truncated, short.truncated) == (1, 0)
    assert "texts longer than the model takes, and cut: 1" in cut.warnings
    assert str(caught.value) == (
        "the tags of dev.tsv are not the model's: got 'B-B', expected 'B-A', 'I-A', 'O'"
    )


def test_questions(tmp_path):
    with open_session(write_reader(tmp_path / "reader")) as session:
        pairs = [("a", "very film"), ("b", "good"), ("very", "bad")]
        said = [answer.text for answer in session.predict(pairs)]
        labels = ((said[0], "x"), ("The good",), ("nothing",))
        data = texts(*pairs, labels=labels, kind=DatasetKind.QUESTIONS)
        found = evaluate(session, data)
        exact = evaluate(session, data, "exact-match")
        agreement = evaluate(session, data, "agreement", reference=session)
    assert (found.metric, found.value) == ("squad-f1", pytest.approx(2 / 3))
    assert exact.value == pytest.approx(2 / 3)
    assert agreement.value == 1


def test_a_reference_asked_or_recorded(tmp_path, classifier):
    inputs = texts(*USED)
    # The same classes, of other logits: those of the words of a table with one class more.
    other = write_classifier(tmp_path / "other", labels=("bad", "good"))
    with open_session(other) as reference:
        asked = evaluate(classifier, inputs, reference=reference)
        kept = record(reference, inputs)
        again = evaluate(classifier, inputs, reference=kept)
        kl = evaluate(classifier, inputs, "kl", reference=reference)
        with pytest.raises(DataError, match="was recorded to say is of other samples, or of choi"):
            evaluate(classifier, inputs, "kl", reference=kept)
        with pytest.raises(DataError, match="was recorded to say is of other samples"):
            evaluate(classifier, texts("a"), reference=kept)
    assert (asked.metric, asked.value) == ("agreement", 1)
    assert asked.reference == other.digest
    assert again.reference == other.digest
    np.testing.assert_array_equal(again.rows, asked.rows)
    assert kl.value == 0


def test_embeddings_are_compared_by_cosine(tmp_path, embedder):
    from support.bundles import text_graph

    inputs = texts("a b", "good film", "the")
    other = write_text_bundle(tmp_path / "other", embedding=MEAN, graph=text_graph(seed=1))
    with open_session(other) as reference:
        found = evaluate(embedder, inputs, reference=reference)
        theirs = reference.predict(list(inputs.texts))
    assert found.metric == "cosine"
    ours = [embedding_of(text) for text in inputs.texts]
    np.testing.assert_allclose(found.rows[:, 0], (ours * theirs).sum(axis=1), rtol=1e-5)


def test_padding_is_not_compared(tmp_path):
    ids = np.array([[1, 4, 5, 2], [1, 6, 2, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    data = Dataset("a.npz", DatasetKind.FEEDS, {"input_ids": ids, "attention_mask": mask}, None)
    with open_session(write_text_bundle(tmp_path / "raw")) as session:
        kept = record(session, data)
        found = evaluate(session, data, reference=session)
    assert [len(value) for value in kept.values] == [4, 3]
    assert (found.metric, found.value) == ("cosine", 1)


def test_bundles_of_two_models(tmp_path, classifier):
    bundle = write_classifier(tmp_path / "three", labels=("a", "b", "c"))
    with open_session(bundle) as reference, pytest.raises(DataError) as caught:
        evaluate(classifier, texts("a"), "kl", reference=reference)
    assert str(caught.value) == (
        "classifier gives [2] where the reference gives [3], for sample 1 of dev.tsv"
    )
    assert caught.value.hint == "Compare bundles of one model."


def test_random_weights_are_refused(tmp_path):
    source = Source(SourceKind.CONFIG, "bert-base", random_weights=True)
    bundle = write_classifier(tmp_path / "random", source=source)
    with open_session(bundle) as session, pytest.raises(BundleError) as caught:
        evaluate(session, texts("a", labels=(1,)))
    assert str(caught.value) == "random has random weights: its accuracy says nothing"
    assert caught.value.hint.startswith("Export it from a trained checkpoint")


def test_an_interval_without_width_is_named(classifier):
    found = evaluate(classifier, texts(*USED * 5), reference=classifier)
    assert (found.low, found.high) == (1, 1)
    assert found.warnings == (
        "every sample counts the same: the interval has no width, and no meaning",
    )


def test_what_does_not_fit(classifier, embedder):
    images = Dataset("a.npz", DatasetKind.IMAGES, {"images": np.zeros((1, 2, 2, 3), "u1")}, (1,))
    for session, data, metric, message in (
        (
            classifier,
            texts("a"),
            "auto",
            "nothing to measure: classifier gives classes, and dev.tsv holds texts with no labels",
        ),
        (
            embedder,
            texts("a", labels=(1,)),
            "auto",
            "nothing to measure: embedder gives embeddings, and dev.tsv holds texts with labels",
        ),
        (classifier, texts("a"), "accuracy", "dev.tsv has no labels: got text"),
        (
            classifier,
            texts("a", labels=(1,)),
            "spearman",
            "spearman looks at a number: classifier gives classes, and dev.tsv holds texts",
        ),
        (
            classifier,
            texts("a"),
            "agreement",
            "agreement compares with a reference, and there is none",
        ),
        (classifier, texts("a"), "rouge", "no metric called 'rouge'"),
        (
            classifier,
            images,
            "accuracy",
            "a.npz holds images, and classifier does not say how images become arrays",
        ),
        (
            classifier,
            images,
            "auto",
            "a.npz holds images, and classifier does not say how images become arrays",
        ),
    ):
        with pytest.raises(DataError) as caught:
            evaluate(session, data, metric)
        assert str(caught.value) == message
        assert caught.value.hint


def test_only_what_is_compared_is_recorded(classifier):
    with pytest.raises(DataError, match="accuracy is not compared with a reference, but with lab"):
        record(classifier, texts("a", labels=(1,)), "accuracy")


def test_nan_is_an_error_not_a_class(tmp_path):
    with open_session(write_classifier(tmp_path / "nan")) as session:
        run = session._executable.run
        session._executable.run = lambda feed: {k: v * np.nan for k, v in run(feed).items()}
        with pytest.raises(NotFiniteError) as caught:
            evaluate(session, texts("a", "b", labels=(0, 1)))
    assert str(caught.value).startswith("nan on onnxruntime ")
    assert str(caught.value).endswith("gives NaN or infinity for sample 1 of dev.tsv")


def test_an_unreadable_sample_is_named(embedder):
    data = texts(("a", "b"), ("a", "\ud800"), labels=(1, 2), kind=DatasetKind.PAIRS)
    with pytest.raises(DataError, match=r"dev\.tsv, sample 2: is not Unicode: half of a"):
        evaluate(embedder, data)


def test_auto_asks_for_what_there_is(classifier, embedder):
    bundle = classifier.bundle
    assert metric_for(bundle, texts("a"), reference=True).name == "agreement"
    assert metric_for(bundle, texts("a", labels=(1,)), reference=True).name == "accuracy"
    assert metric_for(embedder.bundle, texts("a", labels=(1,)), reference=True).name == "cosine"


def result(rows, **changes):
    base = Evaluation(
        metric="accuracy",
        value=float(np.mean(rows)),
        low=0,
        high=1,
        samples=len(rows),
        data="dev.tsv",
        data_digest="d" * 64,
        bundle="b",
        bundle_digest="",
        backend="x",
        reference="",
        truncated=0,
        duration_s=1.0,
        warnings=(),
        rows=np.asarray(rows, np.float64).reshape(len(rows), -1),
    )
    return dataclasses.replace(base, **changes)


def test_pairs_say_more_than_two_intervals(rng):
    hard = rng.random(400) < 0.15
    parent = (~hard).astype(float)
    child = parent.copy()
    child[np.flatnonzero(~hard)[:8]] = 0

    found = compare_evaluations(result(parent), result(child), rng)

    assert found.value == pytest.approx(-0.02)
    assert found.low < -0.02 < found.high < 0
    assert found.high - found.low < 0.03  # apart, each would be known to within 0.07
    assert found.drop == (pytest.approx(0.02), -found.high, -found.low)
    same = compare_evaluations(result(parent), result(parent), rng)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_loss_that_rises_is_a_drop(rng):
    low, high = rng.random(50), rng.random(50) + 1
    found = compare_evaluations(result(low, metric="kl"), result(high, metric="kl"), rng)
    assert found.drop == (found.value, found.low, found.high)
    assert found.low > 0


def test_different_measurements_cannot_be_compared(rng):
    first = result([1, 0])
    with pytest.raises(DataError) as caught:
        compare_evaluations(first, result([1, 0], metric="kl", data_digest="e" * 64), rng)
    assert str(caught.value) == (
        "evaluations cannot be compared:\n"
        "  metrics 'accuracy' and 'kl'\n"
        "  data 'dev.tsv dddddddddddd' and 'dev.tsv eeeeeeeeeeee'"
    )
    with pytest.raises(DataError, match="references '' and 'f'"):
        compare_evaluations(first, result([1, 0], reference="f"), rng)

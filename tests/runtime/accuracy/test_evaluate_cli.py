"""``tfx evaluate``: metric, interval, samples; beside a reference the difference."""

import json
import math

import pytest
from click.testing import CliRunner
from support.texts import MEAN, WORDS, logits_table, write_classifier, write_text_bundle

from tfx.cli import main
from tfx.recipe import Source, SourceKind

USED = WORDS[4:]


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def fails(result):
    """What a failed command said: the error, and the hint or ""."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    error, _, hint = result.stderr[result.stderr.index("error: ") :].partition("\nhint: ")
    return error.removeprefix("error: ").strip(), hint.strip()


@pytest.fixture
def bundle(tmp_path):
    return write_classifier(tmp_path / "classifier")


@pytest.fixture
def data(tmp_path):
    """Five times each word, one in eight labelled wrongly."""
    best = [int(logits_table(2)[WORDS.index(word)].argmax()) for word in USED]
    best[0] = 1 - best[0]
    rows = [f"{word}\t{label}\n" for word, label in zip(USED, best, strict=True)] * 5
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\n" + "".join(rows))
    return path


def test_a_metric_and_its_interval(bundle, data):
    result = run(bundle.path, "--eval", data, "--backend", "onnxruntime", "--threads", 1)
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert first.startswith("accuracy 0.8750 (95 % interval 0.7")
    assert "  classifier on onnxruntime " in first
    assert second.startswith("40 samples of dev.tsv, ")


def test_json_says_the_same(bundle, data):
    result = run(bundle.path, "--eval", data, "--metric", "f1-macro", "--json")
    document = json.loads(result.stdout)
    found = document["evaluation"]
    assert document["bundle"] == str(bundle.path)
    assert (found["metric"], found["samples"], found["unit"]) == ("f1-macro", 40, "share")
    assert found["low"] < found["value"] < found["high"] <= 1
    assert found["bundle_digest"] == bundle.digest
    assert "rows" not in found


def test_samples_are_drawn_by_the_seed(bundle, data):
    digests = set()
    for seed in (0, 0, 1):
        result = run(bundle.path, "--eval", data, "--samples", 7, "--seed", seed, "--json")
        found = json.loads(result.stdout)["evaluation"]
        assert found["samples"] == 7
        assert found["warnings"] == ["7 samples only: too few for an interval to be trusted"]
        digests.add(found["data_digest"])
    assert len(digests) == 2


def test_the_difference_from_a_reference(tmp_path, bundle, data):
    named = data.read_text().replace("\t0\n", "\tbad\n").replace("\t1\n", "\tgood\n")
    data.write_text(named)
    other = write_classifier(tmp_path / "swapped", labels=("good", "bad"))
    result = run(bundle.path, "--eval", data, "--reference", other.path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("accuracy 0.8750 ")
    assert lines[1].startswith("accuracy 0.1250 ")
    assert "  swapped on onnxruntime" in lines[1]
    assert lines[2].startswith("difference +0.7500 (95 % paired interval +0.5")
    result = run(bundle.path, "--eval", data, "--reference", other.path, "--json")
    document = json.loads(result.stdout)
    assert document["reference"]["bundle"] == "swapped"
    assert document["difference"]["value"] == 0.75


def test_without_labels_outputs_are_compared(tmp_path):
    first = write_text_bundle(tmp_path / "first", embedding=MEAN)
    second = write_text_bundle(tmp_path / "second", embedding=MEAN)
    texts = tmp_path / "texts.txt"
    texts.write_text("good film\nvery bad\n\nnot the film\n")
    result = run(first.path, "--eval", texts, "--reference", second.path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("cosine 1.0000 (95 % interval 1.0000 to 1.0000)  first on ")
    assert "note: 3 samples only: too few for an interval to be trusted" in result.stdout
    found = json.loads(
        run(first.path, "--eval", texts, "--reference", second.path, "--json").stdout
    )
    assert found["evaluation"]["reference"] == second.digest
    assert "difference" not in found


def test_scores_of_pairs(tmp_path):
    bundle = write_text_bundle(tmp_path / "embedder", embedding=MEAN)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "sentence1,sentence2,score\ngood film,good film,5\ngood film,very bad,1\nnot,not a,3.5\n"
    )
    found = json.loads(run(bundle.path, "--eval", pairs, "--json").stdout)["evaluation"]
    assert found["metric"] == "spearman"
    assert math.isfinite(found["low"])


def test_what_is_wrong_is_one_line(tmp_path, bundle, data):
    random = write_classifier(
        tmp_path / "random", source=Source(SourceKind.CONFIG, "bert", random_weights=True)
    )
    assert fails(run(random.path, "--eval", data)) == (
        "random has random weights: its accuracy says nothing",
        "Export it from a trained checkpoint, without --random-weights.",
    )
    error, hint = fails(run(bundle.path, "--eval", data, "--metric", "rouge"))
    assert error == "no metric called 'rouge'"
    assert hint.startswith("Use one of: accuracy, ")
    data.write_text("sentence\tlabel\ngood\tpositive\n")
    assert fails(run(bundle.path, "--eval", data)) == (
        "the labels of dev.tsv are not the model's: got 'positive', expected 'bad', 'good', "
        "or 0 to 1",
        "Rename those of the file, or choose data of the model's task.",
    )


def test_data_must_be_named(bundle):
    result = run(bundle.path)
    assert result.exit_code == 2
    assert "Missing option '--eval'" in result.stderr


@pytest.mark.parametrize("option", ["--task", "--source", "--target"])
def test_options_of_translations_are_for_them(bundle, data, option):
    result = run(bundle.path, "--eval", data, option, "de")
    assert result.exit_code == 2
    said = "--task, --source and --target are for translations, dev.tsv holds texts"
    assert said in " ".join(result.stderr.split())

import dataclasses
import json

import pytest
import transformers
from support.checkpoints import WORDS, bert

from tfx.dtypes import DType
from tfx.errors import DataError, QuantizeError, RecipeError
from tfx.export.pipeline import export_bundle
from tfx.quantization import Accuracy, QuantizeRecipe
from tfx.quantize.accuracy import Judge
from tfx.quantize.calibration import calibration_texts
from tfx.quantize.lowering import prepare_lowering
from tfx.quantize.pipeline import write_draft
from tfx.quantize.plot import plot_search
from tfx.quantize.search import SearchReport, Trial, _least, find_kept
from tfx.runtime.accuracy.samples import Dataset, DatasetKind
from tfx.runtime.opening import open_session

TEXTS = tuple(
    f"{first} {second} of {third}"
    for first in WORDS
    for second in WORDS[:6]
    for third in WORDS[2:4]
)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    heads = transformers.BertForSequenceClassification
    bert(folder / "model", heads, num_labels=2, num_hidden_layers=1)
    return export_bundle(str(folder / "model"), folder / "bundle")


@pytest.fixture(scope="module")
def labelled(parent):
    with open_session(parent) as session:
        labels = tuple(answer.label for answer in session.predict(list(TEXTS)))
    return Dataset("texts.tsv", DatasetKind.TEXTS, TEXTS, labels)


@pytest.fixture(scope="module")
def lowering(parent):
    data = calibration_texts(parent, TEXTS[::2], name="texts.tsv")
    return prepare_lowering(parent, QuantizeRecipe(DType.INT8, smooth=0.0), data)


class Planted:
    """Judges by which groups are lowered: a bundle is good once the worst are kept."""

    def __init__(self, judge, worst):
        self.metric, self.dataset, self.worst, self.measured = judge.metric, judge.dataset, worst, 0

    def measure(self, bundle):
        self.measured += 1
        kept = {node.group for node in bundle.manifest.quantization.kept}
        drop = 0.0 if self.worst <= kept else 0.5
        return Accuracy("accuracy", 1 - drop, 1.0, drop, drop, drop, 9, "texts.tsv", "planted")


@pytest.fixture
def judge(parent, labelled):
    return Judge(parent, labelled, "auto", seed=0)


@pytest.mark.parametrize("needed", range(9))
def test_bisection_finds_the_least(needed):
    tried = []

    def holds(kept):
        tried.append(kept)
        return kept >= needed

    assert _least(holds, 8) == needed
    assert len(tried) <= 8


def test_a_budget_that_nothing_meets():
    with pytest.raises(QuantizeError, match="does not hold even with every group kept"):
        _least(lambda kept: False, 5)


def test_nothing_is_kept_where_all_can_be_lowered(lowering, judge, tmp_path):
    keep, report = find_kept(lowering, judge, 0.5, tmp_path / "state.json")
    assert keep == ()
    assert report.chosen == 0
    assert not report.sensitivity  # nobody asked
    (trial,) = report.trials
    assert trial.accuracy.metric == "accuracy"
    assert trial.accuracy.samples == len(TEXTS)
    assert trial.size_bytes > 0
    assert trial.speedup > 0


def test_the_most_sensitive_are_kept(lowering, judge, tmp_path):
    full, _ = find_kept(lowering, Planted(judge, {*lowering.groups}), 0.1, tmp_path / "all.json")
    assert set(full) == {*lowering.groups}
    order = list(full)
    keep, report = find_kept(lowering, Planted(judge, {order[2]}), 0.1, tmp_path / "state.json")
    assert list(keep) == order[:3]
    assert report.chosen == 3
    assert [*report.sensitivity.values()] != sorted(report.sensitivity.values())
    assert json.loads((tmp_path / "state.json").read_text())["chosen"] == 3


def test_sensitivity_is_that_of_a_group_lowered_alone(lowering, judge, tmp_path):
    _, report = find_kept(
        lowering, Planted(judge, {lowering.groups[0]}), 0.1, tmp_path / "state.json"
    )
    assert set(report.sensitivity) == set(lowering.groups)
    assert all(0 <= moved < 1 for moved in report.sensitivity.values())
    assert max(report.sensitivity.values()) > 0


def test_a_metric_that_compares_with_the_parent_ranks_by_itself(
    lowering, judge, parent, labelled, tmp_path
):
    ranking = Judge(parent, labelled.sample(12), "kl", seed=0)
    planted = Planted(judge, {*lowering.groups})
    state = tmp_path / "state.json"
    _, report = find_kept(lowering, planted, 0.1, state, ranking=ranking)
    assert report.ruler == "kl"
    assert set(report.order) == set(lowering.groups)
    group = lowering.groups[-1]
    folder = tmp_path / "alone"
    folder.mkdir()
    lowered = lowering.lower([one for one in lowering.groups if one != group])
    alone = ranking.measure(write_draft(lowering, lowered, folder))
    assert report.sensitivity[group] == pytest.approx(alone.drop)
    assert "changes" not in json.loads(state.read_text())  # of use only until there is an order


def test_a_ranking_that_was_stopped_goes_on(lowering, judge, parent, labelled, tmp_path):
    state = tmp_path / "state.json"
    ranking = Judge(parent, labelled.sample(12), "kl", seed=0)
    planted = Planted(judge, {*lowering.groups})
    steps = []

    def stop(step):
        steps.append(step)
        if step.startswith("sensitivity") and len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_kept(lowering, planted, 0.1, state, ranking=ranking, on_step=stop)
    known = json.loads(state.read_text())["sensitivity"]
    assert 0 < len(known) < len(lowering.groups)
    _, report = find_kept(lowering, planted, 0.1, state, ranking=ranking, on_step=steps.append)
    again = [step for step in steps[5:] if step.startswith("sensitivity")]
    assert len(again) == len(lowering.groups) - len(known)
    _, whole = find_kept(lowering, planted, 0.1, tmp_path / "other.json", ranking=ranking)
    assert whole.order == report.order


def test_a_state_of_another_ranking_is_not_taken(lowering, judge, parent, labelled, tmp_path):
    state = tmp_path / "state.json"
    planted = Planted(judge, {*lowering.groups})
    _, report = find_kept(lowering, planted, 0.1, state)
    assert report.ruler == "outputs"
    ranking = Judge(parent, labelled.sample(12), "kl", seed=0)
    _, report = find_kept(lowering, planted, 0.1, state, ranking=ranking)
    assert report.ruler == "kl"


def test_a_stopped_search_goes_on(lowering, judge, tmp_path):
    state = tmp_path / "state.json"
    planted = Planted(judge, {*lowering.groups})

    def stop(trial, groups):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_kept(lowering, planted, 0.1, state, on_trial=stop)
    assert planted.measured == 1
    _, report = find_kept(lowering, planted, 0.1, state)
    assert planted.measured == len(report.trials)  # the first was not measured again
    assert [trial.kept for trial in report.trials] == list(
        dict.fromkeys(trial.kept for trial in report.trials)
    )


@pytest.mark.parametrize("text", ["", "{", '{"key": 1}', "[]"])
def test_a_damaged_state_begins_anew(lowering, judge, tmp_path, text):
    state = tmp_path / "state.json"
    state.write_text(text)
    _, report = find_kept(lowering, judge, 0.5, state)
    assert len(report.trials) == 1


def test_a_state_of_another_budget_is_not_taken(lowering, judge, tmp_path):
    state = tmp_path / "state.json"
    find_kept(lowering, judge, 0.5, state)
    planted = Planted(judge, set())
    find_kept(lowering, planted, 0.4, state)
    assert planted.measured == 1


def test_sensitivity_needs_data(lowering, judge, tmp_path):
    without = dataclasses.replace(lowering, data=None)
    with pytest.raises(DataError) as raised:
        find_kept(without, judge, 0.5, tmp_path / "state.json")
    assert str(raised.value) == "a budget needs data to find out which groups are sensitive"
    assert raised.value.hint == "Give a file of real inputs: --calibrate FILE."


def test_unknown_group_to_keep(lowering):
    with pytest.raises(RecipeError, match="there is no such group to keep: nowhere"):
        lowering.lower(["nowhere"])


def test_the_parent_beside_itself_drops_nothing(parent, judge, labelled):
    found = judge.measure(parent)
    assert (found.metric, found.value, found.parent, found.drop) == ("accuracy", 1.0, 1.0, 0.0)
    assert found.samples == len(labelled)


def test_without_labels_it_is_the_agreement(parent, labelled):
    found = Judge.without_labels(parent, labelled, seed=0).measure(parent)
    assert (found.metric, found.value, found.drop) == ("agreement", 1.0, 0.0)


def test_picture_of_a_search(tmp_path):
    def trial(kept, value):
        accuracy = Accuracy("accuracy", value, 0.9, 0.9 - value, 0, 0, 99, "d", "b")
        return Trial(kept, accuracy, 10_000_000 + kept, 2.0)

    report = SearchReport("k", 0.02, trials=(trial(0, 0.8), trial(1, 0.89)), chosen=1)
    plot_search(report, 40_000_000, tmp_path / "search.svg")
    text = (tmp_path / "search.svg").read_text()
    assert text.startswith("<?xml")
    assert "99 samples of d, by groups of layers kept in floats" in text
    assert "search" not in text or text.rstrip().endswith("</svg>")

from types import SimpleNamespace

import pytest
from support.checkpoints import bert, write_sentence_transformers

from tfx.dtypes import DType
from tfx.errors import RecipeError
from tfx.export.pipeline import export_bundle
from tfx.quantization import QuantizeRecipe
from tfx.quantize.runs import _data_of, _judges
from tfx.runtime.accuracy.heads import Head
from tfx.runtime.accuracy.samples import Dataset, DatasetKind

PAIRS = (("alpha", "beta of two"), ("a model", "gamma"), ("masks and heads", "delta"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_sentence_transformers(bert(folder / "from", num_hidden_layers=1), normalize=True)
    return export_bundle(str(folder / "from"), folder / "embedder")


def test_an_embedding_model_reads_each_text_of_a_pair_alone(embedder):
    dataset = Dataset("pairs.tsv", DatasetKind.PAIRS, PAIRS, (1.0, 2.0, 3.0))
    data = _data_of(embedder, dataset, QuantizeRecipe(DType.INT8))
    assert data.facts.samples == 6
    assert data.facts.tokens == 11 + 6 * 2  # words, and [CLS] and [SEP] around each text
    assert all((feed["token_type_ids"] == 0).all() for feed in data)


def test_a_classifier_reads_a_pair_together(classifier):
    dataset = Dataset("pairs.tsv", DatasetKind.PAIRS, PAIRS, (0, 1, 0))
    data = _data_of(classifier, dataset, QuantizeRecipe(DType.INT8))
    assert data.facts.samples == 3
    assert data.facts.tokens == 11 + 3 * 3


@pytest.mark.parametrize("head", [Head.SPEECH, Head.TRANSLATION])
def test_what_takes_an_encoder_beside_it_is_not_measured_while_it_is_lowered(
    head, tmp_path, monkeypatch
):
    (tmp_path / "pairs.tsv").write_text("source\ttarget\none\teins\n")
    monkeypatch.setattr("tfx.quantize.runs.head_of", lambda parent, dataset: head)
    decoder = SimpleNamespace(name="t5-decoder", manifest=SimpleNamespace(encoder="t5-encoder"))
    with pytest.raises(RecipeError, match="while t5-decoder is lowered") as caught:
        _judges(decoder, QuantizeRecipe(DType.INT8), None, tmp_path / "pairs.tsv", None)
    assert caught.value.hint.startswith("Leave --eval out")

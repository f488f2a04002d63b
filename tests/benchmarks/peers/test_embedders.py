import dataclasses
import types

import numpy as np
import pytest

from tfx.bench.peers import embedders, serving
from tfx.bench.peers.embedders import (
    Job,
    Ready,
    Server,
    cpu_flags,
    load_ctranslate2,
    load_st_torch,
    of_encoder,
    of_model,
    restored,
)

JOB = Job("checkpoint", "model.onnx", "folder", 1, 6, 2)


class Words:
    """A tokenizer: a token a word, its number of letters."""

    pad_token_id = 0

    def __call__(self, texts, *, truncation, max_length):
        assert truncation
        return {"input_ids": [[len(w) for w in text.split()][:max_length] for text in texts]}


def states_of(ids, mask):
    """States that are not 0 where there is padding."""
    return np.stack([ids, ids * 0 + 1.0], axis=-1).astype(np.float32) + 100.0 * (
        1 - mask[..., None]
    )


def test_an_encoder_embeds_by_the_mean_of_its_tokens_in_the_order_of_the_texts():
    shapes = []

    def run(ids, mask):
        shapes.append(ids.shape)
        return states_of(ids, mask)

    embed = of_encoder(Words(), run, JOB)
    texts = ["a", "aa bb cc dd", "aaa bbb", "a " * 50]
    found = embed(texts, 2)
    expected = np.array([[1, 1], [2, 1], [3, 1], [1, 1]], np.float32)
    assert np.allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert shapes == [(2, 6), (2, 2)]  # the longest together, cut at 6


def test_rows_go_back_where_they_were():
    order = [2, 0, 1]
    assert restored(np.array([[20.0], [0.0], [10.0]]), order).ravel().tolist() == [0, 10, 20]


def test_a_model_of_sentence_transformers_is_asked_for_unit_vectors():
    class Model:
        def encode(self, texts, *, batch_size, normalize_embeddings, show_progress_bar):
            assert normalize_embeddings
            assert not show_progress_bar
            return np.full((len(texts), 2), batch_size, np.float64)

    found = of_model(Model())(["a", "b"], 7)
    assert found.dtype == np.float32
    assert found.tolist() == [[7, 7], [7, 7]]


def test_flags_are_the_systems(monkeypatch):
    monkeypatch.setattr(embedders.Path, "read_text", lambda self: "model : x\nflags : avx2 fma\n")
    assert cpu_flags() == {"avx2", "fma"}


def test_a_type_the_cpu_has_not_is_refused(monkeypatch):
    library = types.SimpleNamespace(get_supported_compute_types=lambda device: {"int8", "float32"})
    torch = types.SimpleNamespace(set_num_threads=lambda count: None)
    names = {"ctranslate2": library, "torch": torch, "transformers": None}
    names["sentence_transformers"] = types.SimpleNamespace(SentenceTransformer=lambda *_, **__: 0)
    monkeypatch.setattr(embedders.importlib, "import_module", names.__getitem__)
    monkeypatch.setattr(embedders, "cpu_flags", frozenset)
    with pytest.raises(RuntimeError, match="it computes in float32, int8 on this CPU"):
        load_ctranslate2(JOB, kind="bfloat16")
    with pytest.raises(RuntimeError, match="this CPU multiplies no bfloat16"):
        load_st_torch(JOB, half=True)


def test_a_server_keeps_what_is_embedded_and_not_what_is_tried(tmp_path, monkeypatch):
    def embed(texts, batch):
        return np.array([[len(text), batch] for text in texts])

    loaded = serving.Peer("", lambda job: Ready("library 1", "float32", embed, job.checkpoint))
    monkeypatch.setattr(embedders, "PEERS", {"one": loaded})
    monkeypatch.setattr(serving.os, "environ", {})
    server = Server()
    job = dataclasses.asdict(JOB)
    assert server.answer({"do": "load", "peer": "one", "job": job}) == {
        "versions": "library 1",
        "precision": "float32",
        "note": "checkpoint",
    }
    assert server.answer({"do": "try", "texts": ["never kept"], "batch": 1}) >= 0
    assert server.answer({"do": "embed", "texts": ["a", "bb"], "batch": 8}) >= 0
    assert server.answer({"do": "embed", "texts": ["ccc"], "batch": 8}) >= 0
    server.answer({"do": "outputs", "path": str(tmp_path / "x.npy")})
    assert np.load(tmp_path / "x.npy").tolist() == [[1, 8], [2, 8], [3, 8]]


def test_what_goes_wrong_is_told():
    with pytest.raises(ValueError, match="no such question: dance"):
        Server().answer({"do": "dance"})

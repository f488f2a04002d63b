"""An exported model and data for it, shared by the tests that quantize whole bundles."""

import contextlib
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from support.checkpoints import SIZES, WORDS, write_checkpoint

from tfx.bundle import open_bundle
from tfx.export.pipeline import export_bundle

# Heads of 32: TensorRT fuses attention from 16 on.
WIDE = SIZES | {"hidden_size": 64, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def samples():
    """Texts of 2 to 20 words."""
    draw = random.Random(20261121)
    return [" ".join(draw.choices(WORDS, k=draw.randint(2, 20))) for _ in range(48)]


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """The bundle of a BERT that gives a text one of two labels; its source lies beside it."""
    root = tmp_path_factory.mktemp("quantize")
    write_checkpoint(
        root / "from",
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**WIDE),
        std=0.2,
    )
    with contextlib.chdir(root):
        export_bundle("from", "tiny")
    return open_bundle(root / "tiny")


@pytest.fixture(scope="session")
def files(tmp_path_factory, samples):
    """The samples in each format of data."""
    folder = tmp_path_factory.mktemp("data")
    found = SimpleNamespace(
        text=folder / "data.txt",
        tsv=folder / "data.tsv",
        jsonl=folder / "data.jsonl",
        npz=folder / "data.npz",
    )
    found.text.write_text("".join(f"{text}\n" for text in samples))
    rows = "".join(f"{text}\t{index % 2}\n" for index, text in enumerate(samples))
    found.tsv.write_text("sentence\tlabel\n" + rows)
    found.jsonl.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in samples))
    rng = np.random.default_rng(20261121)
    np.savez(
        found.npz,
        input_ids=rng.integers(5, 16, (40, 12)),
        attention_mask=np.ones((40, 12), np.int64),
        token_type_ids=np.zeros((40, 12), np.int64),
    )
    return found

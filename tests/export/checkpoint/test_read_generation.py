"""End tokens and chat template of a checkpoint."""

import json

import pytest
import transformers
from support.checkpoints import write_tokenizer

from tfx.errors import SourceError
from tfx.export.checkpoint.generation import read_generation
from tfx.processing import Generation

CONFIG = transformers.LlamaConfig(eos_token_id=7, vocab_size=64)


def test_of_a_configuration_alone(tmp_path):
    assert read_generation(CONFIG, None, tmp_path) == Generation((7,))
    none = transformers.LlamaConfig(eos_token_id=None, vocab_size=64)
    assert read_generation(none, None, tmp_path) == Generation()


def test_of_generation_settings(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert read_generation(CONFIG, tmp_path, tmp_path).end_ids == (3, 5)


def test_damaged_settings(tmp_path):
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(SourceError, match=r"generation_config\.json is damaged"):
        read_generation(CONFIG, tmp_path, tmp_path)


def test_chat_template(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    write_tokenizer(source, eos_token="[SEP]", chat_template="{{ messages }}")
    said = read_generation(CONFIG, source, target)
    assert (target / said.chat_template).read_text() == "{{ messages }}"
    assert said.special == {"eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    write_tokenizer(source)


def test_a_damaged_tokenizer(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(SourceError, match="cannot load the tokenizer of"):
        read_generation(CONFIG, tmp_path, tmp_path)

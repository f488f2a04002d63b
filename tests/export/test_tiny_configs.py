import json

import click.testing
import pytest
import torch
import transformers

from tfx.errors import ExportError
from tfx.export import wide
from tfx.export.survey import main
from tfx.export.tiny_configs import HIDDEN, VOCABULARY, build_tiny, tiny_config
from tfx.export.wide import Row, append_row, attempt, candidates, read_rows, wide_table


@pytest.mark.parametrize("name", ["BertConfig", "GPT2Config", "LlamaConfig", "ViTConfig"])
def test_sizes_are_small_under_the_names_of_the_class(name):
    config = tiny_config(getattr(transformers, name))
    assert config.hidden_size == HIDDEN
    assert config.num_hidden_layers == 2
    assert getattr(config, "vocab_size", VOCABULARY) == VOCABULARY


def test_special_tokens_get_into_the_vocabulary():
    config = tiny_config(transformers.GPT2Config)  # 50256 by default
    assert config.eos_token_id < VOCABULARY
    assert config.bos_token_id < VOCABULARY
    assert config.eos_token_id != config.bos_token_id


def test_a_missing_pad_token_is_set():
    assert transformers.LlamaConfig().pad_token_id is None
    assert tiny_config(transformers.LlamaConfig).pad_token_id == 0


def test_every_kind_of_layer_appears():
    whole = transformers.Gemma3TextConfig()
    tiny = tiny_config(transformers.Gemma3TextConfig)
    assert set(tiny.layer_types) == set(whole.layer_types)
    assert len(tiny.layer_types) == tiny.num_hidden_layers < whole.num_hidden_layers


def test_configurations_inside_are_small_too():
    config = tiny_config(transformers.CLIPConfig)
    assert config.text_config.hidden_size == HIDDEN
    assert config.vision_config.hidden_size == HIDDEN


def test_changes_win_and_bad_ones_are_an_error():
    assert tiny_config(transformers.BertConfig, hidden_size=32).hidden_size == 32
    with pytest.raises(ExportError, match="no tiny LlamaConfig: "):
        tiny_config(transformers.LlamaConfig, hidden_size=33)


def test_weights_make_attention_count():
    module = build_tiny(transformers.BertModel, tiny_config(transformers.BertConfig))
    ids = torch.arange(14).reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        masked = module(input_ids=ids, attention_mask=mask).last_hidden_state[1, :4]
        unmasked = module(input_ids=ids).last_hidden_state[1, :4]
    assert (masked - unmasked).abs().max() > 0.1


def test_the_same_seed_gives_the_same_weights():
    config = tiny_config(transformers.BertConfig)
    first, second, other = (build_tiny(transformers.BertModel, config, seed) for seed in (1, 1, 2))
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_model_that_is_not_tiny_is_not_built():
    config = transformers.BertConfig(vocab_size=100_000)
    with pytest.raises(ExportError, match="BertModel is not tiny: 16"):
        build_tiny(transformers.BertModel, config)


def test_candidates_are_transformers_own_tables():
    rows = candidates(["image-classification"], ["vit", "deit", "bert"])
    assert [(row.model_type, row.class_name) for row in rows] == [
        ("deit", "DeiTForImageClassification"),
        ("vit", "ViTForImageClassification"),
    ]
    assert len(candidates()) > 900


def test_attempt_exports_and_compares(tmp_path):
    steps = []
    row = Row("image-classification", "vit", "ViTForImageClassification")
    done = attempt(row, tmp_path, steps.append)
    assert (done.status, done.reason) == (wide.OK, "")
    assert (done.attention, done.softmax) == (2, 0)
    assert 0 < done.error < 1e-4
    assert steps[:3] == ["building", "planning", "running PyTorch"]


@pytest.mark.parametrize(
    ("planted", "status"),
    [
        ("tiny_config", wide.NOT_BUILT),
        ("plan_inputs", wide.NO_PLAN),
        ("_run", wide.NO_FORWARD),
        ("export_bundles", wide.NOT_LOADED),
    ],
)
def test_a_failure_is_a_status_with_its_reason(planted, status, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("planted\nfault")

    monkeypatch.setattr(wide, planted, fail)
    done = attempt(Row("image-classification", "vit", "ViTForImageClassification"), tmp_path)
    assert (done.status, done.reason) == (status, "ValueError: planted fault")


def test_an_export_that_differs_says_so(tmp_path, monkeypatch):
    from tfx.export import proof

    monkeypatch.setattr(proof, "TOLERANCE", 1e-12)
    done = attempt(Row("image-classification", "vit", "ViTForImageClassification"), tmp_path)
    assert done.status == wide.DIFFERS
    assert "scaled error" in done.reason


def test_a_child_that_dies_is_a_row(monkeypatch):
    done = wide.cast([Row("image-classification", "vit", "ViTForImageClassification")])
    assert done[0].status == wide.OK
    monkeypatch.setattr(wide, "TIME_LIMIT_S", 0.01)
    (late,) = wide.cast([Row("image-classification", "vit", "ViTForImageClassification")])
    assert late.status == wide.NOT_BUILT
    assert late.reason == "nothing for 0.01 s in the step: building"


def test_the_table_counts_only_what_runs():
    rows = [
        Row("t", "a", "A", wide.OK, 2, 0, 1e-6),
        Row("t", "b", "B", wide.NOT_TRACED, reason="x | y"),
        Row("t", "c", "C", wide.NO_PLAN),
        Row("t", "d", "D", wide.NOT_BUILT),
        Row("t", "e", "E"),
    ]
    text = wide_table(rows)
    assert "| t | 5 | 4 | 2 | 1 | 50% | 1 |" in text
    assert "| **all** | 5 | 4 | 2 | 1 | 50% | 1 |" in text
    assert "| e |" not in text
    assert "| a | `A` | ok | 2 of 2 | 1.0e-06 |  |" in text
    assert "| b | `B` | trace fails |  |  | x \\| y |" in text


def test_rows_are_kept_and_the_last_one_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, Row("t", "a", "A", wide.NOT_TRACED))
    append_row(path, Row("t", "b", "B", wide.OK))
    append_row(path, Row("t", "a", "A", wide.OK, error=0.5))
    assert read_rows(path) == [Row("t", "a", "A", wide.OK, error=0.5), Row("t", "b", "B", wide.OK)]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3


def test_the_command_goes_on_from_stored_rows(tmp_path):
    store, page = tmp_path / "rows.jsonl", tmp_path / "wide-net.md"
    append_row(store, Row("image-classification", "vit", "ViT", wide.OK, 2, 0, 1e-6))
    arguments = ["--wide", "--task", "image-classification", "--rows", str(store), "vit"]
    result = click.testing.CliRunner().invoke(main, [*arguments, "-o", str(page)])
    assert result.exit_code == 0, result.output
    assert "| image-classification | 1 | 1 | 1 | 1 | 100% | 0 |" in page.read_text()
    assert len(store.read_text().splitlines()) == 1


def test_no_jobs_show_what_is_stored():
    arguments = ["--wide", "--task", "image-classification", "--jobs", "0", "vit", "deit"]
    result = click.testing.CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "| image-classification | 2 | 0 | 0 | 0 |  | 0 |" in result.output


def test_a_reason_names_no_machine():
    row = Row("t", "a", "A", wide.NOT_TRACED, reason="in /" + "home/me/lib/x.py, a/b")
    assert "| in x.py, a/b |" in wide_table([row])


def test_a_long_reason_ends_with_a_whole_word():
    row = Row("t", "a", "A", wide.NOT_TRACED, reason="a reason " * 30)
    assert wide_table([row]).endswith("| " + "a reason " * 17 + "a ... |")


def test_task_is_for_the_wide_net_only():
    result = click.testing.CliRunner().invoke(main, ["--task", "text-generation"])
    assert result.exit_code == 2
    assert "--task and --rows are for --wide" in result.output

import pytest
import transformers

from tfx.errors import ExportError
from tfx.export.pipeline import export_bundle
from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.export.tracing.architectures import plan_inputs
from tfx.recipe import ExportRecipe

FULL = (5 + 2 * 1) * 4  # blocks of 4, one random: up to here BigBird attends to everything
POSITIONS = 128


@pytest.fixture(scope="module")
def model():
    config = tiny_config(
        transformers.BigBirdConfig,
        block_size=4,
        num_random_blocks=1,
        max_position_embeddings=POSITIONS,
    )
    assert config.attention_type == "block_sparse"
    return build_tiny(transformers.BigBirdModel, config)


@pytest.mark.parametrize("asked", [0, 9, FULL])
def test_sequences_vary_as_far_as_attention_is_full(model, asked):
    plan = plan_inputs(model, model.config, max_sequence=asked)
    assert plan.limits == {"sequence": FULL}
    assert plan.dynamic["input_ids"] == ("batch", "sequence")


def test_a_longer_sequence_has_one_length(model):
    plan = plan_inputs(model, model.config, max_sequence=62)
    assert list(plan.examples) == ["input_ids", "attention_mask", "token_type_ids"]
    assert {tuple(example.shape) for example in plan.examples.values()} == {(3, 62)}
    assert set(plan.dynamic.values()) == {("batch", "")}
    assert plan.examples["attention_mask"].sum(1).tolist() == [62, 20, 46]


def test_full_attention_has_no_such_limit(model):
    config = tiny_config(transformers.BigBirdConfig, attention_type="original_full")
    full = build_tiny(transformers.BigBirdModel, config)
    assert plan_inputs(full, config).limits == {"sequence": config.max_position_embeddings}


def test_more_than_there_are_positions_is_an_error(model):
    with pytest.raises(ExportError, match="--max-seq is 129, the model has positions for 128"):
        plan_inputs(model, model.config, max_sequence=129)


def test_block_sparse_attention_is_exported_as_it_is(model, tmp_path):
    model.save_pretrained(tmp_path / "source")
    bundle = export_bundle(
        str(tmp_path / "source"), tmp_path / "bundle", ExportRecipe(max_sequence=62)
    )
    shapes = {spec.name: spec.shape for spec in bundle.manifest.signature.inputs}
    assert shapes["input_ids"] == shapes["attention_mask"] == ("batch", 62)
    # Sparse attention is five attentions a layer: the first block, the second, the middle, ...
    assert bundle.manifest.facts["attention"] + bundle.manifest.facts["softmax"] == 10

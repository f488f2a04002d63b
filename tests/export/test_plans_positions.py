import pytest
import transformers

from tfx.errors import ExportError
from tfx.export.architectures import plan_inputs
from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.runtime.modules import without_cache
from tfx.runtime.parts import part_of


def test_mpt_has_positions_by_another_name():
    config = tiny_config(transformers.MptConfig, max_seq_len=40)
    model = build_tiny(transformers.MptModel, config)
    assert plan_inputs(model, config).limits == {"sequence": 40}


def test_led_counts_positions_of_both_sides():
    config = tiny_config(
        transformers.LEDConfig,
        max_encoder_position_embeddings=40,
        max_decoder_position_embeddings=24,
    )
    model = build_tiny(transformers.LEDForConditionalGeneration, config)
    encoder = plan_inputs(part_of(model, "encoder"), config, "encoder")
    decoder = plan_inputs(part_of(model, "decoder"), config, "decoder")
    assert encoder.limits == {"sequence": 40}
    assert decoder.limits == {"encoder_sequence": 40, "sequence": 24}


@pytest.mark.parametrize("name", ["Esm", "Luke", "MarkupLM", "Xmod", "XLMRobertaXL"])
def test_positions_start_after_the_padding_token(name):
    config = tiny_config(getattr(transformers, f"{name}Config"))
    model = build_tiny(getattr(transformers, f"{name}Model"), config)
    limit = config.max_position_embeddings - config.pad_token_id - 1
    assert plan_inputs(model, config).limits == {"sequence": limit}


def test_canine_reads_code_points():
    config = tiny_config(transformers.CanineConfig)
    model = build_tiny(transformers.CanineModel, config)
    assert plan_inputs(model, config).examples["input_ids"].max() < 128


def test_a_decoder_of_time_series_is_refused_with_a_way_out():
    config = tiny_config(transformers.TimeSeriesTransformerConfig, prediction_length=4)
    model = build_tiny(transformers.TimeSeriesTransformerModel, config)
    with pytest.raises(ExportError, match="reads the future so far") as caught:
        plan_inputs(model, config)
    assert "factory" in caught.value.hint


def test_caches_are_off_inside_too():
    config = transformers.LlavaConfig()
    assert config.text_config.use_cache
    without_cache(config)
    assert not config.text_config.use_cache
    assert not config.use_cache

import pytest
import transformers

from tfx.export.tiny_configs import build_tiny, tiny_config
from tfx.export.tracing.architectures import plan_inputs
from tfx.runtime.pytorch.modules import without_cache
from tfx.runtime.pytorch.parts import part_of, whole_of


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


def test_a_forecast_reads_the_past_with_its_lags_and_the_future_so_far():
    config = tiny_config(
        transformers.TimeSeriesTransformerConfig,
        lags_sequence=[1, 5],
        num_static_categorical_features=2,
        cardinality=[3, 4],
        embedding_dimension=[2, 2],
        num_static_real_features=1,
        input_size=2,
    )
    model = build_tiny(transformers.TimeSeriesTransformerModel, config)
    plan = plan_inputs(whole_of(model), config)
    sizes = {name: tuple(example.shape[1:]) for name, example in plan.examples.items()}
    assert sizes == {
        "past_values": (16 + 5, 2),
        "past_time_features": (16 + 5, 2),
        "past_observed_mask": (16 + 5, 2),
        "future_so_far": (6, 2),
        "future_time_features": (6, 2),
        "static_categorical_features": (2,),
        "static_real_features": (1,),
    }
    assert all(axes[0] == "batch" and not any(axes[1:]) for axes in plan.dynamic.values())
    assert set(plan.examples["past_observed_mask"].unique().tolist()) == {0, 1}


def test_caches_are_off_inside_too():
    config = transformers.LlavaConfig()
    assert config.text_config.use_cache
    without_cache(config)
    assert not config.text_config.use_cache
    assert not config.use_cache

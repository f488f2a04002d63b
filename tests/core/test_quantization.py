import pytest

from tfx.codec import decode, encode
from tfx.dtypes import DType
from tfx.errors import RecipeError
from tfx.quantization import (
    PRECISIONS,
    Accuracy,
    CalibrationFacts,
    KeptNode,
    Quantization,
    QuantizeRecipe,
    RangeMethod,
    WeightMethod,
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": DType.FLOAT32}, "precision is float32, expected one of float16, "),
        ({"dynamic": True, "precision": DType.INT4}, "dynamic ranges are for int8, got int4"),
        ({"percentile": 50.0}, "percentile is 50.0, expected above 50 and up to 100"),
        ({"smooth": 1.5}, "smooth is 1.5, expected 0 to 1"),
        ({"block_size": 48}, "block_size is 48, expected a power of 2 from 16"),
        ({"max_drop": -0.1}, "max_drop is -0.1, expected 0 or more"),
        ({"samples": 0}, "samples is 0, expected 1 or more"),
        ({"tokens": -1}, "tokens is -1, expected 0 or more"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
    ],
)
def test_impossible_recipe(given, message):
    with pytest.raises(RecipeError) as raised:
        QuantizeRecipe(**{"precision": DType.INT8, **given})
    assert message in str(raised.value)


def test_every_problem_is_listed():
    with pytest.raises(RecipeError) as raised:
        QuantizeRecipe(DType.INT8, samples=0, seed=-1)
    assert str(raised.value).count("\n") == 2


@pytest.mark.parametrize(
    ("recipe", "needed"),
    [
        (QuantizeRecipe(DType.INT8), True),
        (QuantizeRecipe(DType.INT8, dynamic=True), False),
        (QuantizeRecipe(DType.FLOAT8_E4M3), True),
        (QuantizeRecipe(DType.INT4), False),
        (QuantizeRecipe(DType.INT4, weight_method=WeightMethod.GPTQ), True),
        (QuantizeRecipe(DType.FLOAT16), False),
    ],
)
def test_what_needs_calibration(recipe, needed):
    assert recipe.needs_calibration is needed


def test_round_trip():
    whole = Quantization(
        QuantizeRecipe(DType.INT8, method=RangeMethod.ENTROPY, smooth=0.5, keep=("a", "b")),
        CalibrationFacts("train.tsv", "0" * 64, 512, 9000, ("one",)),
        smooth=0.5,
        quantized=72,
        kept=(KeptNode("n", "layer.0", "asked for"),),
        accuracy=(
            Accuracy("accuracy", 0.87, 0.88, 0.01, 0.0, 0.02, 436, "dev.tsv", "onnxruntime"),
        ),
    )
    assert decode(Quantization, encode(whole)) == whole


def test_every_precision_has_a_word():
    assert [*PRECISIONS.values()] == ["fp16", "bf16", "int8", "fp8", "int4"]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (
            (0.9, 0.91, 0.01, -0.002, 0.02),
            "kl 0.9000, parent 0.9100, drop +0.0100 (95 % -0.0020 to +0.0200)",
        ),
        (
            (3e-5, 0.0, 3e-5, -2.04e-6, 1.5e-4),
            "kl 3.0e-05, parent 0.0000, drop +3.0e-05 (95 % -2.0e-06 to +0.0001)",
        ),
        (
            (1.0, 1.0, 0.0, 0.0, 0.0),
            "kl 1.0000, parent 1.0000, drop +0.0000 (95 % +0.0000 to +0.0000)",
        ),
    ],
)
def test_what_it_costs_in_words(numbers, text):
    assert str(Accuracy("kl", *numbers, 10, "dev.tsv", "onnxruntime")) == text

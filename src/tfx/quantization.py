"""How a bundle's precision is lowered: what was asked for, what was done, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from .dtypes import DType
from .errors import RecipeError, listing

# What ``tfx quantize`` can write, and the word for each on the command line and in names.
PRECISIONS: dict[DType, str] = {
    DType.FLOAT16: "fp16",
    DType.BFLOAT16: "bf16",
    DType.INT8: "int8",
    DType.FLOAT8_E4M3: "fp8",
    DType.INT4: "int4",
}

# What floats can be around products of fewer bits.
RESTS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)

# Per cent of the values of an activation that its range holds, unless another is asked for.
PERCENTILE = 99.99

# The key of ``Manifest.variants`` for ONNX Runtime's CPU execution provider.
ORT_CPU = "onnxruntime-cpu"


class RangeMethod(StrEnum):
    """How the range of an activation is chosen from what calibration saw."""

    MINMAX = "minmax"  # the largest magnitude seen
    MOVING_AVERAGE = "moving-average"  # of the largest magnitude of each batch
    PERCENTILE = "percentile"  # what so many per cent of the values stay below
    ENTROPY = "entropy"  # least Kullback-Leibler divergence of the clipped histogram
    MSE = "mse"  # least mean squared error of clipping and rounding together


class WeightMethod(StrEnum):
    """How 4-bit weights are chosen."""

    RTN = "rtn"  # round to nearest
    HQQ = "hqq"  # half-quadratic: scale and zero point fitted to a robust error
    GPTQ = "gptq"  # errors carried to the weights not yet rounded, by calibration data


@dataclass(frozen=True, slots=True)
class QuantizeRecipe:
    """Everything that decides how a bundle's precision is lowered, besides the data.

    Attributes:
        precision: One of ``PRECISIONS``.
        rest: Type of the floats around int8, fp8 and int4: one of ``RESTS``.
        dynamic: int8 activations by the range of each run, without calibration.
        method: How activation ranges are chosen; None for the best of a few, which the recipe
            of the new bundle then names.
        percentile: For ``RangeMethod.PERCENTILE``, in (50, 100].
        smooth: SmoothQuant's alpha in [0, 1]; 0 for none, None for the best of a few.
        weight_method: Of 4-bit weights.
        block_size: Weights along the reduced axis that share a scale; 4-bit weights only.
        keep: Groups (``tfx quantize --list-groups``) left in the parent's precision.
        max_drop: Largest loss of the metric allowed, e.g. 0.01; None for no budget.
        metric: Of the budget; "auto" by the task and the columns of the data.
        samples: Most samples taken from the calibration data.
        tokens: Longest sample, in tokens; 0 for the signature's limit.
        seed: Of which samples are taken.
    """

    precision: DType
    rest: DType = DType.FLOAT32
    dynamic: bool = False
    method: RangeMethod | None = None
    percentile: float = PERCENTILE
    smooth: float | None = None
    weight_method: WeightMethod = WeightMethod.RTN
    block_size: int = 32
    keep: tuple[str, ...] = ()
    max_drop: float | None = None
    metric: str = "auto"
    samples: int = 512
    tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.precision not in PRECISIONS:
            names = ", ".join(PRECISIONS)
            problems.append(f"precision is {self.precision}, expected one of {names}")
        if self.rest not in RESTS:
            problems.append(f"rest is {self.rest}, expected one of {', '.join(RESTS)}")
        elif self.rest is not DType.FLOAT32 and self.precision in RESTS:
            problems.append(f"rest is for int8, fp8 and int4, got {self.precision}")
        if self.dynamic and self.precision is not DType.INT8:
            problems.append(f"dynamic ranges are for int8, got {self.precision}")
        if not 50 < self.percentile <= 100:
            problems.append(f"percentile is {self.percentile}, expected above 50 and up to 100")
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            problems.append(f"smooth is {self.smooth}, expected 0 to 1")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            problems.append(f"block_size is {self.block_size}, expected a power of 2 from 16")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            problems.append(f"max_drop is {self.max_drop}, expected 0 or more")
        if self.samples < 1:
            problems.append(f"samples is {self.samples}, expected 1 or more")
        if self.tokens < 0:
            problems.append(f"tokens is {self.tokens}, expected 0 or more")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}, expected 0 or more")
        if problems:
            raise RecipeError(listing("recipe cannot be followed:", problems))

    @property
    def needs_calibration(self) -> bool:
        """Whether activations must be seen: static 8-bit ranges, and GPTQ."""
        if self.precision in (DType.INT8, DType.FLOAT8_E4M3):
            return not self.dynamic
        return self.precision is DType.INT4 and self.weight_method is WeightMethod.GPTQ


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """The data activation ranges come from.

    Attributes:
        name: The file's name, without its folder.
        digest: sha256 over the samples used, in order.
        samples: How many were used.
        tokens: Tokens in them, or elements of the first input of arrays; 0 for images.
        warnings: What a reader must know, e.g. "one sample only".
    """

    name: str
    digest: str
    samples: int
    tokens: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptNode:
    """A node left in higher precision.

    Attributes:
        name: Of the node in the graph.
        group: The group it belongs to, e.g. "encoder.layer.0.output".
        reason: Why, e.g. "reaches 1.2e+05, float16 ends at 6.5e+04".
    """

    name: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One metric of a bundle beside that of its parent, on the same samples.

    Attributes:
        metric: E.g. "accuracy", "spearman", "cosine", "agreement".
        value: Of the bundle.
        parent: Of the bundle it was made from.
        drop: How much worse the bundle is; negative where it is better.
        drop_low: Lower end of the 95 % paired bootstrap interval of ``drop``.
        drop_high: Upper end.
        samples: How many were evaluated.
        data: The file's name, without its folder.
        backend: What ran it, e.g. "onnxruntime 1.31.1 CPUExecutionProvider int8".
    """

    metric: str
    value: float
    parent: float
    drop: float
    drop_low: float
    drop_high: float
    samples: int
    data: str
    backend: str

    def __str__(self) -> str:
        low, high = _signed(self.drop_low), _signed(self.drop_high)
        values = f"{_digits(self.value)}, parent {_digits(self.parent)}"
        return f"{self.metric} {values}, drop {_signed(self.drop)} (95 % {low} to {high})"


def _digits(number: float) -> str:
    """Four decimals; two digits of what is too small for them."""
    return f"{number:.4f}" if number == 0 or abs(number) >= 1e-4 else f"{number:.1e}"


def _signed(number: float) -> str:
    return _digits(number) if number < 0 else f"+{_digits(number)}"


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a bundle's precision was lowered.

    Attributes:
        recipe: What was asked for.
        calibration: The data; None where none is needed.
        smooth: SmoothQuant's alpha that was used; 0 for none.
        quantized: Nodes in the new precision.
        kept: Nodes that could be in it and are not.
        accuracy: What it cost, as far as it was measured.
    """

    recipe: QuantizeRecipe
    calibration: CalibrationFacts | None = None
    smooth: float = 0.0
    quantized: int = 0
    kept: tuple[KeptNode, ...] = field(default=())
    accuracy: tuple[Accuracy, ...] = field(default=())

"""Weights of 4 bits, in blocks that share a scale; activations stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfx.errors import QuantizeError, listing
from tfx.extras import need
from tfx.quantization import QuantizeRecipe, RangeMethod, WeightMethod

from .linear import add_constant, array_of, drop_unused, scope_of

# Signed: -8 to 7. Half of the levels, and the largest.
HALF, TOP = 8, 7
# Unsigned, with a zero point: 0 to 15.
LEVELS = 15

# ONNX Runtime fuses blocks from this size on.
SMALLEST_BLOCK = 16

# How much of the range a search for the least squared error tries to clip, and how finely.
# Four bits of a normal distribution gain from some 15 to 20 per cent; 40 is past all gain.
SHRINKS = np.linspace(1.0, 0.6, 21)

# Badri & Shaji 2023 (HQQ): p of the norm, weight of the quadratic term and its growth, steps.
# Their values; the error is measured in steps here, so that they fit weights of any size.
HQQ_NORM, HQQ_WEIGHT, HQQ_GROWTH, HQQ_STEPS = 0.7, 10.0, 1.01, 20

# Frantar et al. 2022 (GPTQ): a hundredth of the mean diagonal keeps the inverse stable, and
# errors are carried out of a stretch of this many rows at once.
DAMPING, STRETCH = 0.01, 128

# Within a stretch errors are carried row by row through so many, which stay in a core's cache, and
# from those to the others at once. Divides every block.
STRIP = SMALLEST_BLOCK

# Numbers that a search for scales goes through at once, for the same reason.
CACHED = 1 << 16


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight in 4 bits.

    Attributes:
        numbers: ``int8[in, out]``: -8 to 7, or 0 to 15 where there are zero points.
        scale: ``float32[blocks, out]``.
        zero: ``int8[blocks, out]``, 0 to 15; None where it is 0 throughout.
        size: Rows of a block; divides ``in``.
    """

    numbers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    size: int

    def values(self) -> np.ndarray:
        """What the numbers stand for, ``float32[in, out]``."""
        scale = np.repeat(self.scale, self.size, axis=0)
        zero = 0 if self.zero is None else np.repeat(self.zero, self.size, axis=0)
        return np.asarray((self.numbers - zero) * scale)

    def channels(self, start: int, end: int) -> Blocks:
        """Of these output channels alone."""
        some = slice(start, end)
        zero = None if self.zero is None else self.zero[:, some]
        return Blocks(self.numbers[:, some], self.scale[:, some], zero, self.size)


def lower_weights_int4(
    model: ir.Model,
    recipe: QuantizeRecipe,
    names: Collection[str],
    hessians: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Store weights of matrix products in 4 bits.

    A ``DequantizeLinear`` with ``block_size`` (opset 21) in front of each product: every engine
    takes it, ONNX Runtime fuses both into one ``MatMulNBits``. TensorRT takes zero points of 0
    alone, so no weights of ``WeightMethod.HQQ``.

    Args:
        model: Changed in place.
        recipe: Its ``weight_method``; its ``block_size``, halved for a weight until it divides
            the rows; and its ``method``: unless it is the largest magnitude, scales may clip,
            to where the squared error is least.
        names: Of the weights, ``[in, out]``, second inputs of ``MatMul``.
        hessians: For ``WeightMethod.GPTQ``: weight name to ``X.T @ X`` of the activations
            ``X[tokens, in]`` it is multiplied with, to any factor.

    Returns:
        Products that read a 4-bit weight now.

    Raises:
        QuantizeError: If a name is no such weight, cannot be cut into blocks, has a NaN or
            infinity, or lacks its Hessian.
    """
    weights = _weights(model, names)
    if recipe.weight_method is WeightMethod.GPTQ:
        _require_hessians(weights, hessians or {})
    # Channels do not know of each other: weights that share their activations, as query, key and
    # value do, are one wide weight, whose Hessian is factored once.
    shared: dict[object, list[str]] = {}
    for name, (weight, _) in weights.items():
        hessian = (hessians or {}).get(name)
        assert weight.const_value is not None
        same = (id(hessian), weight.const_value.shape[0])
        shared.setdefault(name if hessian is None else same, []).append(name)
    for names in shared.values():
        arrays = [array_of(weights[name][0]) for name in names]
        hessian = (hessians or {}).get(names[0])
        blocks = _blocks(np.concatenate(arrays, axis=1), recipe, hessian)
        start = 0
        for name, array in zip(names, arrays, strict=True):
            end = start + array.shape[1]
            _place(model.graph, *weights[name], blocks.channels(start, end))
            start = end
    return sum(len(users) for _, users in weights.values())


def round_blocks(weight: np.ndarray, size: int, *, clip: bool = False) -> Blocks:
    """Round to the nearest of 16 levels, symmetric about 0.

    ``q = round(w / scale)``, ``scale = max|w| / 7`` of each block.

    Args:
        weight: ``float32[in, out]``.
        size: Rows of a block; must divide ``in``.
        clip: Whether to lower each scale to where the squared error is least; the largest
            weights then become -8 or 7.
    """
    folded = _folded(weight, size)
    scale = _symmetric_scale(folded, clip=clip)
    numbers = np.clip(np.rint(folded / scale), -HALF, TOP)
    return Blocks(_unfolded(numbers), scale[:, 0], None, size)


def fit_blocks(weight: np.ndarray, size: int) -> Blocks:
    """Fit scales and zero points to a robust error: half-quadratic quantization.

    Minimises ``|w - scale * (q - zero)|**0.7``, which forgives outliers, by splitting the error
    into a sparse part and a quadratic one in turn (Badri & Shaji 2023, "Half-Quadratic
    Quantization of Large Machine Learning Models"). Theirs is a zero point of floats, which
    ``DequantizeLinear`` does not take; here it is whole, and the scale is fitted with it.

    Args:
        weight: ``float32[in, out]``.
        size: Rows of a block; must divide ``in``.
    """
    folded = _folded(weight, size)  # [blocks, size, out]
    low, high = folded.min(1, keepdims=True), folded.max(1, keepdims=True)
    low, high = np.minimum(low, 0), np.maximum(high, 0)  # zero is one of the levels
    scale = _usable((high - low) / np.float32(LEVELS))
    zero = np.clip(np.rint(-low / scale), 0, LEVELS)
    best_scale, best_zero = scale, zero
    least = np.full_like(scale, np.inf)
    weight_of = HQQ_WEIGHT
    for _ in range(HQQ_STEPS):
        numbers = np.clip(np.rint(folded / scale) + zero, 0, LEVELS)
        error = folded - (numbers - zero) * scale
        loss = (np.abs(error) ** HQQ_NORM).sum(1, keepdims=True)
        better = loss < least
        least = np.where(better, loss, least)
        best_scale, best_zero = (
            np.where(better, scale, best_scale),
            np.where(better, zero, best_zero),
        )
        sparse = _shrink(error / scale, weight_of) * scale
        zero = np.rint((numbers - (folded - sparse) / scale).mean(1, keepdims=True))
        zero = np.clip(zero, 0, LEVELS)
        steps = numbers - zero
        squares = (steps**2).sum(1, keepdims=True)
        fitted = ((folded - sparse) * steps).sum(1, keepdims=True) / np.where(squares, squares, 1)
        scale = np.where((squares > 0) & (fitted > 0), _usable(fitted), scale)
        weight_of *= HQQ_GROWTH
    numbers = np.clip(np.rint(folded / best_scale) + best_zero, 0, LEVELS)
    zero = best_zero[:, 0].astype(np.int8)
    return Blocks(_unfolded(numbers), best_scale[:, 0], zero, size)


def carry_blocks(
    weight: np.ndarray, size: int, hessian: np.ndarray, *, clip: bool = False
) -> Blocks:
    """Round row by row, each error made good by the rows not yet rounded: GPTQ.

    Frantar et al. 2022 (arXiv:2210.17323), algorithm 1, with symmetric scales that are taken
    of the weights as they have become when their block is reached. An output channel that comes
    out worse than by ``round_blocks``, as may be where blocks are few, is taken from there.

    Args:
        weight: ``float32[in, out]``.
        size: Rows of a block; must divide ``in``.
        hessian: ``[in, in]``, ``X.T @ X`` of the activations, to any factor.
        clip: As of ``round_blocks``.

    Raises:
        QuantizeError: If the Hessian has another shape, or is none.
    """
    rows = len(weight)
    upper, hessian = _inverse_factor(hessian, rows)
    left = weight.astype(np.float32)
    numbers = np.zeros_like(left)
    scales: list[np.ndarray] = []
    for start in range(0, rows, STRETCH):
        end = min(start + STRETCH, rows)
        errors = np.empty((end - start, weight.shape[1]), np.float32)
        for first in range(start, end, STRIP):
            last = first + STRIP
            if first % size == 0:
                block = left[first : first + size]
                scales.append(_symmetric_scale(block[None], clip=clip)[0, 0])
            for row in range(first, last):
                numbers[row] = np.clip(np.rint(left[row] / scales[-1]), -HALF, TOP)
                error = (left[row] - numbers[row] * scales[-1]) / upper[row, row]
                left[row + 1 : last] -= upper[row, row + 1 : last, None] * error
                errors[row - start] = error
            strip = errors[first - start : last - start]
            left[last:end] -= upper[first:last, last:end].T @ strip
        left[end:] -= upper[start:end, end:].T @ errors
    carried = Blocks(numbers.astype(np.int8), np.stack(scales), None, size)
    plain = round_blocks(weight, size, clip=clip)
    worse = _output_error(weight, carried, hessian) > _output_error(weight, plain, hessian)
    return Blocks(
        np.where(worse, plain.numbers, carried.numbers),
        np.where(worse, plain.scale, carried.scale),
        None,
        size,
    )


def _blocks(weight: np.ndarray, recipe: QuantizeRecipe, hessian: np.ndarray | None) -> Blocks:
    clip = recipe.method is not RangeMethod.MINMAX
    size = _size_of(len(weight), recipe.block_size)
    if recipe.weight_method is WeightMethod.HQQ:
        return fit_blocks(weight, size)
    if recipe.weight_method is WeightMethod.GPTQ:
        assert hessian is not None
        return carry_blocks(weight, size, hessian, clip=clip)
    return round_blocks(weight, size, clip=clip)


def _size_of(rows: int, asked: int) -> int:
    """The largest block up to ``asked`` of which rows have a whole number.

    OpenVINO takes no last block that is shorter than the others.
    """
    return min(asked, rows & -rows)


def _folded(weight: np.ndarray, size: int) -> np.ndarray:
    """``[blocks, size, out]``."""
    return weight.reshape(-1, size, weight.shape[1])


def _unfolded(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(-1, numbers.shape[-1]).astype(np.int8)


def _usable(scale: np.ndarray) -> np.ndarray:
    """Scales of which none is 0, as of a block of zeros."""
    usable: np.ndarray = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    return usable


def _symmetric_scale(folded: np.ndarray, *, clip: bool) -> np.ndarray:
    """``[blocks, 1, out]``, of ``[blocks, size, out]``."""
    full = _usable(np.abs(folded).max(1, keepdims=True) / np.float32(TOP))
    if not clip:
        return full
    best = np.empty_like(full)
    count = max(1, CACHED // folded[0].size)
    for start in range(0, len(folded), count):
        part = slice(start, start + count)
        best[part] = _clipped_scale(folded[part], full[part])
    return best


def _clipped_scale(folded: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Of the shares of each full scale, the one with the least squared error."""
    best, least = full, np.full_like(full, np.inf)
    for shrink in SHRINKS:
        scale = _usable(full * np.float32(shrink))
        error = folded / scale
        np.rint(error, out=error)
        np.clip(error, -HALF, TOP, out=error)
        error *= scale
        error -= folded
        loss = np.einsum("bso,bso->bo", error, error)[:, None]
        best = np.where(loss < least, scale, best)
        least = np.minimum(loss, least)
    return best


def _shrink(error: np.ndarray, weight: float) -> np.ndarray:
    """The sparse part of an error: the proximal step of the norm."""
    size = np.abs(error)
    safe = np.where(size, size, 1.0)
    shrunk = np.maximum(size - safe ** (HQQ_NORM - 1) / weight, 0)
    return np.asarray(np.sign(error) * np.where(size, shrunk, 0))


def _inverse_factor(hessian: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The upper factor U of the damped inverse, ``U.T @ U``, and the Hessian; float32.

    Of ``H = R @ R.T`` with R upper, which is the Cholesky factor of H back to front: U is the
    inverse of R, and H itself is never inverted.
    """
    if hessian.shape != (rows, rows):
        raise QuantizeError(
            f"the hessian is {list(hessian.shape)}, expected {[rows, rows]}, as its weight"
        )
    damped = hessian.astype(np.float64)
    mean = float(np.trace(damped)) / rows
    damped[np.diag_indices(rows)] += DAMPING * mean or 1.0  # all zeros: no input was ever seen
    try:
        if not np.isfinite(damped).all():
            raise np.linalg.LinAlgError("it has a NaN or infinity")
        root = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1].astype(np.float32, order="C")
    except np.linalg.LinAlgError as error:
        raise QuantizeError(
            f"the hessian is not one of activations: {error}",
            hint="Calibrate again, on data without NaN.",
        ) from error
    return _triangular_inverse(root), hessian.astype(np.float32)


def _triangular_inverse(upper: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix, by halves: nearly all of it is products."""
    rows = len(upper)
    if rows <= STRETCH:
        return np.triu(np.linalg.inv(upper))
    half = rows // 2
    found = np.zeros_like(upper)
    found[:half, :half] = _triangular_inverse(upper[:half, :half])
    found[half:, half:] = _triangular_inverse(upper[half:, half:])
    found[:half, half:] = -found[:half, :half] @ upper[:half, half:] @ found[half:, half:]
    return found


def _output_error(weight: np.ndarray, blocks: Blocks, hessian: np.ndarray) -> np.ndarray:
    """Squared error of each output channel, summed over the activations; ``[out]``."""
    error = weight - blocks.values()
    return np.asarray(np.einsum("io,io->o", error, hessian @ error))


def why_whole(rows: int) -> str:
    """Why a weight of so many rows cannot be stored in 4 bits, or ""."""
    if rows % SMALLEST_BLOCK == 0:
        return ""
    return f"has {rows} rows, expected a multiple of {SMALLEST_BLOCK}, the smallest block"


def _weights(model: ir.Model, names: Collection[str]) -> dict[str, tuple[ir.Value, list[ir.Node]]]:
    found, problems = {}, []
    for name in dict.fromkeys(names):
        weight = model.graph.initializers.get(name)
        if weight is None or weight.const_value is None:
            problems.append(f"{name}: not a weight of the graph")
            continue
        if weight.dtype != ir.DataType.FLOAT or len(weight.const_value.shape) != 2:
            problems.append(f"{name}: got {weight.dtype}{weight.shape}, expected float32[in, out]")
            continue
        users = [
            use.node
            for use in weight.uses()
            if use.node.op_type == "MatMul" and not use.node.domain and use.idx == 1
        ]
        if not users:
            problems.append(f"{name}: no MatMul has it as its second input")
        elif problem := why_whole(weight.const_value.shape[0]):
            problems.append(f"{name}: {problem}")
        elif not np.isfinite(weight.const_value.numpy()).all():
            problems.append(f"{name} of {scope_of(users[0]) or users[0].name}: NaN or infinity")
        else:
            found[name] = (weight, users)
    if problems:
        raise QuantizeError(
            listing("weights cannot be stored in 4 bits:", problems),
            hint="Keep their groups in the parent's precision with --keep.",
        )
    return found


def _require_hessians(weights: Collection[str], hessians: Mapping[str, np.ndarray]) -> None:
    if missing := [name for name in weights if name not in hessians]:
        raise QuantizeError(
            listing("GPTQ needs the activations of every weight, none are known of:", missing),
            hint="Calibrate with --calibrate FILE, or use another method.",
        )


def _place(graph: ir.Graph, weight: ir.Value, users: list[ir.Node], blocks: Blocks) -> None:
    """Let products read a 4-bit weight; the old one goes where nothing else reads it."""
    types = need("ml_dtypes")
    packed = types.int4 if blocks.zero is None else types.uint4
    given = [
        add_constant(graph, f"{weight.name}_int4", blocks.numbers.astype(packed)),
        add_constant(graph, f"{weight.name}_scale", blocks.scale.astype(np.float32)),
    ]
    if blocks.zero is not None:
        given.append(add_constant(graph, f"{weight.name}_zero", blocks.zero.astype(packed)))
    node = ir.node("DequantizeLinear", given, {"axis": 0, "block_size": blocks.size})
    node.metadata_props.update(users[0].metadata_props)
    output = node.outputs[0]
    output.name = f"{weight.name}_dequantized"
    output.type, output.shape = weight.type, weight.shape
    graph.insert_before(min(users, key=graph.index), node)
    for user in users:
        user.replace_input_with(1, output)
    drop_unused(graph, weight)

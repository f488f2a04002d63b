"""Compare an exported graph with PyTorch: padded feeds, several shapes, rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfx.dtypes import DType
from tfx.errors import ExportError, ParityError, TfxError, listing
from tfx.feeds import Padding, random_feed
from tfx.report import Check, ParityReport
from tfx.runtime.compare import TOLERANCES, merge_errors
from tfx.runtime.proof import Case, Run, compare_case, invariance_error
from tfx.signature import BATCH, SEQUENCE, Feed, Signature

if TYPE_CHECKING:
    import torch

# Batch, sequence and padding of the feeds: short, odd and long, on either side. 512 is the
# longest that is compared, however much further the model's positions reach.
TEXT_SHAPES: tuple[tuple[int, int, Padding], ...] = (
    (1, 1, "none"),
    (1, 8, "none"),
    (3, 13, "right"),
    (3, 13, "left"),
    (8, 33, "both"),
    (8, 64, "none"),
    (1, 512, "none"),
    (8, 128, "right"),
)
BATCHES = (1, 3, 8)

TOLERANCE = TOLERANCES[DType.FLOAT32].scaled_error

BATCH_IS_SINGLE = "batch = single"
PADDED_IS_UNPADDED = {"right": "right-padded = unpadded", "left": "left-padded = unpadded"}

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Reference:
    """What PyTorch gave for each case.

    Attributes:
        cases: The feeds.
        outputs: Outputs of each, by name.
        claims: Invariances that hold in PyTorch itself, so that the graph must keep them.
        notes: A sentence for each that does not.
    """

    cases: tuple[Case, ...]
    outputs: tuple[Outputs, ...]
    claims: tuple[str, ...]
    notes: tuple[str, ...]


def is_text(signature: Signature) -> bool:
    """Whether a model of transformers takes tokens, ``[batch, sequence]``, and nothing else."""
    return all(spec.shape == (BATCH, SEQUENCE) for spec in signature.inputs) and any(
        spec.name == "input_ids" for spec in signature.inputs
    )


def text_cases(signature: Signature, rng: np.random.Generator) -> list[Case]:
    """Feeds for a model with the inputs of a transformers text model, and rows of them alone.

    Args:
        signature: Its ranges bound the shapes.
        rng: Of token ids and padding.
    """
    largest = {axis: sizes.max for axis, sizes in signature.ranges.items()}
    least = signature.ranges[SEQUENCE].min if SEQUENCE in signature.ranges else 1
    padded = any(spec.name == "attention_mask" for spec in signature.inputs)
    cases: list[Case] = []
    seen = set()
    for batch, sequence, padding in TEXT_SHAPES:
        sizes = {
            BATCH: min(batch, largest.get(BATCH, batch)),
            SEQUENCE: max(least, min(sequence, largest.get(SEQUENCE, sequence))),
        }
        if not padded or sizes[SEQUENCE] == 1:
            padding = "none"
        if (key := (*sizes.values(), padding)) in seen:
            continue
        seen.add(key)
        feed = random_feed(signature, sizes, rng, padding=padding)
        whole = len(cases)
        cases.append(Case(_label(sizes, padding), feed))
        if batch == 3 and sizes[BATCH] > 1:
            rows = _rows_alone(feed, padding, whole)
            cases += (row for row in rows if row.feed["input_ids"].shape[1] >= least)
    if not any(case.part_of >= 0 for case in cases) and largest.get(BATCH, 2) > 1:
        raise ExportError(
            f"no feed of several rows fits {signature.ranges}",
            hint="Allow more than one row, or shorter texts: --max-batch, --max-seq.",
        )
    return cases


def example_cases(
    signature: Signature, examples: Mapping[str, np.ndarray], rng: np.random.Generator
) -> list[Case]:
    """Feeds that look like example inputs, in several sizes, and rows of one of them alone.

    Args:
        signature: Of the model.
        examples: Input name to array; what is not noise in them (masks) is resized, not drawn.
        rng: Of everything else.
    """
    sizes_of = {
        axis: size
        for spec in signature.inputs
        for axis, size in zip(spec.shape, examples[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
    shared = all(spec.shape and spec.shape[0] == BATCH for spec in signature.inputs)
    cases: list[Case] = []
    seen = set()
    for turn in range(6):
        sizes = {
            axis: _size(signature, axis, size, turn) for axis, size in sorted(sizes_of.items())
        }
        # Without an axis that varies every feed has one shape; three of them differ in values.
        if (key := tuple(sizes.values())) in seen and (sizes_of or turn > 2):
            continue
        seen.add(key)
        feed = {
            spec.name: _like(
                examples[spec.name],
                spec.shape,
                sizes,
                rng,
                indices=spec.values is not None and not spec.name.endswith("_mask"),
            )
            for spec in signature.inputs
        }
        whole = len(cases)
        cases.append(Case(_label(sizes, "none"), feed))
        if shared and turn in (1, 4) and sizes[BATCH] > 1:  # batch 3, or the most there may be
            cases += _rows_alone(feed, "none", whole)
    return cases


def reference(run: Run, signature: Signature, cases: Sequence[Case]) -> Reference:
    """Run PyTorch on every case and see which invariances it has itself.

    Raises:
        ExportError: If the module fails on a feed its signature admits.
    """
    outputs = []
    for case in cases:
        try:
            results = run(case.feed)
        except Exception as error:  # anything the module's own code raises
            raise ExportError(
                f"the model itself fails on a feed of {case.label}: {str(error).splitlines()[0]}",
                hint="Bound the axis (--max-batch, --max-seq), or name which vary with --dynamic.",
            ) from error
        outputs.append({spec.name: results[spec.name] for spec in signature.outputs})
    claims, notes = [], []
    for claim, (worst, _) in _invariances(signature, cases, outputs).items():
        if worst <= TOLERANCE:
            claims.append(claim)
        else:
            notes.append(f"{claim} is not so in PyTorch (error {worst:.1e}), so not here either")
    return Reference(tuple(cases), tuple(outputs), tuple(claims), tuple(notes))


def prove(
    known: Reference, run: Run, signature: Signature, *, reference_name: str, backend: str
) -> ParityReport:
    """Run the graph on every case and compare.

    Args:
        known: What PyTorch gave.
        run: The graph, loaded.
        signature: It must admit every feed.
        reference_name: What gave ``known``, with its version.
        backend: What ``runner`` is, with its version.

    Raises:
        ParityError: If a claim does not hold, with every case that breaks it.
    """
    errors, actual, problems, worst = [], [], [], 0.0
    for case, expected in zip(known.cases, known.outputs, strict=True):
        signature.bind(case.feed)
        try:
            found = run(case.feed)
        except TfxError as error:
            raise ParityError(f"the graph fails on a feed of {case.label}: {error}") from error
        case_errors, scaled = compare_case(signature, case.feed, expected, found)
        if not scaled <= TOLERANCE:
            problems.append(f"{case.label}: scaled error {scaled:.1e}")
        errors.append(case_errors)
        actual.append(found)
        worst = max(worst, scaled)
    checks = [Check("parity", len(known.cases), worst, TOLERANCE)]
    if not problems:
        invariances = _invariances(signature, known.cases, actual)
        checks += [
            Check(claim, invariances[claim][1], invariances[claim][0], TOLERANCE)
            for claim in known.claims
        ]
        problems = [
            f"{check.name}: scaled error {check.error:.1e}" for check in checks if not check.passed
        ]
    if problems:
        raise ParityError(
            listing(f"the exported graph differs from PyTorch by more than {TOLERANCE}:", problems),
            hint="Report it with the model's name; nothing was written.",
        )
    return ParityReport(
        reference=reference_name,
        backend=backend,
        shapes=tuple(case.label for case in known.cases if case.part_of < 0),
        outputs=merge_errors(errors),
        checks=tuple(checks),
    )


def _invariances(
    signature: Signature, cases: Sequence[Case], outputs: Sequence[Outputs]
) -> dict[str, tuple[float, int]]:
    """Claim to its largest error and the number of rows it was tried on."""
    found: dict[str, tuple[float, int]] = {}
    for case, part in zip(cases, outputs, strict=True):
        if case.part_of >= 0:
            error = invariance_error(signature, case, outputs[case.part_of], part)
            worst, count = found.get(case.claim, (0.0, 0))
            found[case.claim] = (max(worst, error), count + 1)
    return found


def _rows_alone(feed: Feed, padding: str, whole: int) -> Iterator[Case]:
    """Each row of a batch as a feed of its own, its padding cut off."""
    batch = len(next(iter(feed.values())))
    for row in range(batch):
        alone = {name: array[row : row + 1] for name, array in feed.items()}
        start, claim = 0, BATCH_IS_SINGLE
        if padding != "none" and not (mask := alone["attention_mask"][0]).all():
            kept = np.flatnonzero(mask)
            start, stop = int(kept[0]), int(kept[-1]) + 1
            alone = {name: array[:, start:stop] for name, array in alone.items()}
            claim = PADDED_IS_UNPADDED[padding]
        alone = {name: np.ascontiguousarray(array) for name, array in alone.items()}
        label = f"row {row} of case {whole + 1} alone"
        yield Case(label, alone, whole, row, start, claim)


def _size(signature: Signature, axis: str, example: int, turn: int) -> int:
    """A size for one feed: the example's, then smaller, odd and larger ones."""
    if axis == BATCH:
        size = (BATCHES * 2)[turn]
    else:
        size = (example, 1, max(1, example // 2), example + 3, 2 * example + 1, 8)[turn]
    if axis not in signature.ranges:
        return size
    return max(signature.ranges[axis].min, min(size, signature.ranges[axis].max))


def _like(
    example: np.ndarray,
    shape: tuple[int | str, ...],
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    *,
    indices: bool,
) -> np.ndarray:
    """An array of the given sizes that could stand where ``example`` does."""
    target = tuple(size if isinstance(size, int) else sizes[size] for size in shape)
    if example.size == 0:
        return np.zeros(target, example.dtype)
    if example.dtype.kind in "iu" and indices:
        return rng.integers(example.min(), example.max() + 1, target).astype(example.dtype)
    # Zeros and ones together are a mask; zeros or ones alone are what one writes for "some input".
    is_mask = set(np.unique(example)) == {0, 1} or np.abs(example).max() > 1e3
    if example.dtype.kind != "f" or is_mask:
        # A mask (true or false, 1 or 0, 0 or -inf), lengths, positions: structure, not noise.
        if _is_causal(example) and target[-1] == target[-2]:
            seen, hidden = example[-1, 0], example[0, -1]
            resized: np.ndarray = np.where(np.tri(target[-1], dtype=np.bool_), seen, hidden)
            return resized
        # Nearest-neighbour resizing keeps padding at its end.
        for axis, (old, new) in enumerate(zip(example.shape, target, strict=True)):
            example = np.take(example, np.arange(new) * old // new, axis=axis)
        return np.ascontiguousarray(example)
    noise = rng.normal(size=target) * max(float(example.std()), 0.1) + float(example.mean())
    return noise.astype(example.dtype)


def _is_causal(mask: np.ndarray) -> bool:
    """Whether a square mask has one value up to the diagonal and another above it."""
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1] or len(mask) < 2:
        return False
    return np.array_equal(mask, np.where(np.tri(len(mask)), mask[-1, 0], mask[0, -1]))


def _label(sizes: Mapping[str, int], padding: str) -> str:
    parts = [f"{axis} {size}" for axis, size in sizes.items()]
    return ", ".join(parts + ([f"padded {padding}"] if padding != "none" else [])) or "fixed shape"


def torch_arrays(examples: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Example tensors as arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in examples.items()}

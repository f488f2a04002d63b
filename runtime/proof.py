"""The proof a bundle carries: feeds, reference outputs, and how to judge a backend by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfx.errors import BundleError
from tfx.report import Check, OutputError
from tfx.signature import BATCH, SEQUENCE, Feed, Signature, ValueRange

from .compare import compare_outputs, merge_errors, scaled_error

PROOF_FILE = "proof.npz"

# What the file may take: feeds and sampled rows, smallest feeds first.
BUDGET_BYTES = 4 << 20
SAMPLE_ELEMENTS = 8192


# Anything that turns a feed into outputs by name.
Run = Callable[[Feed], Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Case:
    """One feed to compare on.

    Attributes:
        label: How a report names it, e.g. "batch 3, sequence 13, padded right".
        feed: The arrays.
        part_of: Index of the case this one is a row of; -1 for none.
        row: Which row of that case.
        start: Position of that row where this case begins; its padding is cut off.
        claim: What it shows that this case and the row agree, e.g. "batch = single".
    """

    label: str
    feed: Feed
    part_of: int = -1
    row: int = 0
    start: int = 0
    claim: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of one output (``rows_of``) and their reference values.

    Attributes:
        shape: Of the whole output.
        rows: Indices into the output reshaped to ``[-1, width]``; ``int64[n]``.
        values: Reference, ``[n, width]``.
    """

    shape: tuple[int, ...]
    rows: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A case as the bundle keeps it: the feed and samples of the reference outputs."""

    label: str
    feed: Feed
    samples: Mapping[str, Sample]


def valid_rows(signature: Signature, name: str, feed: Feed, array: np.ndarray) -> np.ndarray:
    """The rows of an output that mean something: all but those of padding tokens.

    Args:
        signature: Says whether the output has something per token.
        name: Of the output.
        feed: Its ``attention_mask``, if the signature says that it holds 1 for tokens and 0
            for padding, says which are padding.
        array: The output, ``[..., last]``; or ``[batch, sequence]`` with a number per token.

    Returns:
        ``bool[rows]``, of the output reshaped to rows by ``rows_of``.
    """
    rows = len(rows_of(signature, name, array))
    mask = feed.get("attention_mask") if _keeps_by_one(signature) else None
    if mask is None or array.shape[:2] != mask.shape or not _per_token(signature, name):
        return np.ones(rows, np.bool_)
    # [batch, sequence, ...]: every row of a token is valid or none is.
    return np.repeat(mask.astype(np.bool_).reshape(-1), rows // mask.size)


def rows_of(signature: Signature, name: str, array: np.ndarray) -> np.ndarray:
    """An output as rows along its last axis; one number per row where there is one per token."""
    per_token_number = array.ndim == 2 and _per_token(signature, name)
    width = 1 if per_token_number or array.ndim == 0 else array.shape[-1]
    return array.reshape(-1, width)


def compare_case(
    signature: Signature,
    feed: Feed,
    reference: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
) -> tuple[tuple[OutputError, ...], float]:
    """Errors of one feed's outputs on their valid rows, and the largest scaled error.

    An output that has rows and none that is valid proves nothing: its error is infinite.
    """
    expected, found = {}, {}
    for name, array in reference.items():
        valid = valid_rows(signature, name, feed, array)
        expected[name] = rows_of(signature, name, array)[valid]
        other = actual.get(name)
        if other is not None and other.shape == array.shape and (valid.any() or not valid.size):
            found[name] = rows_of(signature, name, other)[valid]
    return _judged(expected, found)


def _judged(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> tuple[tuple[OutputError, ...], float]:
    """Errors of each output, and the largest scaled error; infinite where one is not found.

    Nothing expected proves nothing: that is infinite too.
    """
    scaled = (
        scaled_error(array, found[name]) if name in found else np.inf
        for name, array in expected.items()
    )
    worst = max(scaled, default=np.inf)
    return compare_outputs(expected, found), worst


def invariance_error(
    signature: Signature,
    case: Case,
    whole: Mapping[str, np.ndarray],
    part: Mapping[str, np.ndarray],
) -> float:
    """Largest scaled error between a case and the row of the batch it was taken from.

    Only outputs with a batch axis are compared, at the positions the part has; an attention
    map has two axes of positions.
    """
    worst = 0.0
    for spec in signature.outputs:
        if not spec.shape or spec.shape[0] != BATCH:
            continue
        alone, row = part[spec.name][0], whole[spec.name][case.row]
        row = row[
            tuple(
                slice(case.start, case.start + size) if axis == SEQUENCE else slice(None)
                for axis, size in zip(spec.shape[1:], alone.shape, strict=True)
            )
        ]
        worst = max(worst, scaled_error(alone, row))
    return worst


def store_cases(
    path: Path,
    signature: Signature,
    cases: Sequence[Case],
    references: Sequence[Mapping[str, np.ndarray]],
    rng: np.random.Generator,
) -> int:
    """Write feeds and sampled reference outputs to an npz file.

    Cases with the smallest feeds come first, as many as ``BUDGET_BYTES`` hold, at least one.

    Returns:
        How many cases were written.
    """
    arrays: dict[str, np.ndarray] = {}
    size, written = 0, 0
    order = sorted(range(len(cases)), key=lambda i: sum(a.nbytes for a in cases[i].feed.values()))
    for index in order:
        entry = {f"{written}/label": np.array(cases[index].label)}
        for name, array in cases[index].feed.items():
            entry[f"{written}/feed/{name}"] = array
        for name, array in references[index].items():
            valid = np.flatnonzero(valid_rows(signature, name, cases[index].feed, array))
            values = rows_of(signature, name, array)
            count = min(len(valid), max(1, SAMPLE_ELEMENTS // max(1, values.shape[1])))
            rows = np.sort(rng.choice(valid, count, replace=False))
            entry[f"{written}/shape/{name}"] = np.array(array.shape, np.int64)
            entry[f"{written}/rows/{name}"] = rows.astype(np.int64)
            entry[f"{written}/values/{name}"] = values[rows]
        size += sum(array.nbytes for array in entry.values())
        if written and size > BUDGET_BYTES:
            break
        arrays |= entry
        written += 1
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return written


def load_cases(path: Path) -> tuple[StoredCase, ...]:
    """Read what ``store_cases`` wrote.

    Raises:
        BundleError: If the file is missing or damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        indices = sorted({int(name.partition("/")[0]) for name in arrays})
        return tuple(_stored_case(arrays, f"{index}/") for index in indices)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path.parent} carries no proof: it has no {path.name}",
            hint="Export it again: tfx export writes one.",
        ) from error
    # zipfile, zlib and numpy raise many kinds on a damaged file.
    except Exception as error:
        raise BundleError(f"{path} is damaged: {error}", hint="Make the bundle again.") from error


def check_cases(
    run: Run, cases: Iterable[StoredCase], tolerance: float
) -> tuple[tuple[OutputError, ...], Check]:
    """Run stored feeds and compare with the reference values stored beside them.

    Args:
        run: What to judge.
        cases: From ``load_cases``.
        tolerance: Largest scaled error allowed.

    Returns:
        Worst errors per output, and the verdict "parity".
    """
    errors, worst, count = [], 0.0, 0
    for case in cases:
        actual = run(case.feed)
        expected, found = {}, {}
        for name, sample in case.samples.items():
            expected[name] = sample.values
            output = actual.get(name)
            if output is not None and output.shape == sample.shape:
                width = sample.values.shape[1]
                found[name] = output.reshape(-1, width)[sample.rows]
        case_errors, case_worst = _judged(expected, found)
        errors.append(case_errors)
        worst = max(worst, case_worst)
        count += 1
    return merge_errors(errors), Check("parity", count, worst, tolerance)


def _stored_case(arrays: Mapping[str, np.ndarray], prefix: str) -> StoredCase:
    def part(kind: str) -> dict[str, np.ndarray]:
        start = f"{prefix}{kind}/"
        return {
            name.removeprefix(start): array
            for name, array in arrays.items()
            if name.startswith(start)
        }

    rows, values = part("rows"), part("values")
    samples = {
        name: Sample(tuple(int(size) for size in shape), rows[name], values[name])
        for name, shape in part("shape").items()
    }
    for name, sample in samples.items():
        count = math.prod(sample.shape) // max(1, sample.values.shape[-1])
        rows_fit = sample.rows.min(initial=0) >= 0 and sample.rows.max(initial=0) < max(1, count)
        if len(sample.rows) != len(sample.values) or not rows_fit:
            raise ValueError(f"rows of {name} do not fit its shape {list(sample.shape)}")
    return StoredCase(str(arrays[f"{prefix}label"]), part("feed"), samples)


def _keeps_by_one(signature: Signature) -> bool:
    """Whether ``attention_mask`` is that of transformers; others invert it, or add it."""
    return any(
        spec.name == "attention_mask" and spec.values == ValueRange(0, 1)
        for spec in signature.inputs
    )


def _per_token(signature: Signature, name: str) -> bool:
    for spec in signature.outputs:
        if spec.name == name:
            return len(spec.shape) >= 2 and spec.shape[1] == SEQUENCE
    return False

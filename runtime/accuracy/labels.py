"""A dataset's labels, in the form of what a bundle predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfx.bundle import Bundle
from tfx.errors import DataError

from .heads import class_names
from .metrics import Form
from .samples import Dataset, Label

# Names of two sets shown in one message.
SHOWN_NAMES = 12


def labels_of(dataset: Dataset, form: Form, bundle: Bundle) -> list[Any]:
    """The labels, in the form of what is predicted.

    Args:
        dataset: Samples with labels.
        form: What a metric looks at.
        bundle: What predicts.

    Raises:
        DataError: If there are none, or they are not what the bundle's answers are.
    """
    labels, where = dataset.labels, dataset.name
    if labels is None:
        raise DataError(
            f"{where} has no labels: got {', '.join(dataset.columns) or 'texts'}",
            hint="Add a column called label or score, or compare with a reference.",
        )
    if form is Form.NUMBER:
        return [_number(label, index, where) for index, label in enumerate(labels, 1)]
    if form is Form.CLASS:
        return class_numbers(labels, dataset.classes, class_names(bundle), where)
    if form is Form.TAGS:
        _check_tags(labels, bundle, where)
    if form is Form.SPEECH and not all(isinstance(label, str) for label in labels):
        raise DataError(
            f"{where} says what class each sound is, and not what is said",
            hint="Add a column called text.",
        )
    return list(labels)


def class_numbers(
    labels: Sequence[Label], classes: Sequence[str], names: Sequence[str], where: str
) -> list[int]:
    """The number of each label among the model's classes.

    Numbers are taken for places in the model's list, unless the file names its classes and the
    model has the same names; names are compared without their case.

    Args:
        labels: Of the samples.
        classes: Names of what integer labels stand for, where the file has them.
        names: Of the model's classes; empty if it does not say.
        where: Name of the file, for messages.

    Raises:
        DataError: If a label is no class of the model; names both sets.
    """
    places = {name.lower(): index for index, name in enumerate(names)}
    renamed = [name.lower() for name in classes]
    if renamed and set(renamed) <= set(places):
        known = {index: places[name] for index, name in enumerate(renamed)}
    else:
        known = {index: index for index in range(len(names))}
    found = []
    for label in labels:
        if isinstance(label, str) and label.lower() in places:
            found.append(places[label.lower()])
        elif isinstance(label, int | float) and label == int(label) >= 0 and not names:
            found.append(int(label))
        elif isinstance(label, int | float) and label in known:
            found.append(known[int(label)])
        else:
            used = sorted({str(one) for one in labels})
            raise _mismatch("labels", where, used, [*names])
    return found


def _mismatch(what: str, where: str, used: Sequence[str], known: Sequence[str]) -> DataError:
    def shown(names: Sequence[str]) -> str:
        text = ", ".join(map(repr, names[:SHOWN_NAMES]))
        return text + (f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else "")

    places = f", or 0 to {len(known) - 1}" if what == "labels" and known else ""
    return DataError(
        f"the {what} of {where} are not the model's: got {shown(used)}, "
        f"expected {shown(known) or 'whole numbers from 0'}{places}",
        hint="Rename those of the file, or choose data of the model's task.",
    )


def _number(label: Label, index: int, where: str) -> float:
    if isinstance(label, int | float):
        return float(label)
    raise DataError(
        f"the labels of {where} are not numbers: got {str(label)[:60]!r} for sample {index}",
        hint="Choose a metric for what the labels are, with --metric.",
    )


def _check_tags(labels: Sequence[Label], bundle: Bundle, where: str) -> None:
    said = bundle.manifest.processing.classification
    known = set(said.labels if said is not None else ())
    used = {tag for tags in labels if isinstance(tags, tuple) for tag in tags}
    if used - known:
        raise _mismatch("tags", where, sorted(used), sorted(known))

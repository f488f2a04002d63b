"""``tfx evaluate``."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import click

from tfx.codec import encode
from tfx.console import DATA, FOLDER, chosen_bundle, console, emit_json, json_option, progress

from ..options import BACKEND, DEVICE, PRECISION, THREADS, TRUST


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--eval", "data", type=DATA, required=True, help="Samples, with labels or without.")
@click.option("--metric", default="auto", show_default=True, help="What to measure.")
@click.option("--reference", type=FOLDER, help="A bundle to compare with, e.g. the parent.")
@click.option("--samples", type=click.IntRange(1), help="Most samples, drawn by --seed.")
@click.option("--seed", default=0, help="Of which samples are taken, and of the interval.")
@click.option("--task", default="", help="Of translations: as of tfx generate --translate.")
@click.option("--source", default="", help="Of translations: code of the language to read.")
@click.option("--target", default="", help="Of translations: code of the language to write in.")
@BACKEND
@DEVICE
@THREADS
@PRECISION
@click.option("--batch", type=click.IntRange(1), help="Most samples in one run of the model.")
@TRUST
@json_option
def evaluate(
    bundle: Path | None,
    data: Path,
    metric: str,
    reference: Path | None,
    samples: int | None,
    seed: int,
    task: str,
    source: str,
    target: str,
    batch: int | None,
    as_json: bool,
    **run: Any,
) -> None:
    """Measure a bundle's accuracy on labelled data, or beside another.

    Reads TSV or CSV with a header (sentence, or sentence1 and sentence2; label or score), JSONL
    with such fields, text, CoNLL (.conll), SQuAD 1.1 (.json), npz with arrays named as the
    model's inputs, and labels, a list of WAV files (audio; text or label), texts and their
    translations (source and target), or a folder of images: one for each class. With --reference
    the difference is measured on the same samples; without labels, how far the outputs agree.
    Without BUNDLE: the newest of the current folder.
    """
    import numpy as np

    from ..opening import open_session
    from ..verification import verified
    from .datasets import read_dataset
    from .display import show_evaluation
    from .evaluation import compare_evaluations
    from .evaluation import evaluate as measure
    from .samples import DatasetKind

    wishes = {"task": task, "source": source, "target": target}
    dataset = read_dataset(data, limit=samples, seed=seed)
    if any(wishes.values()) and dataset.kind is not DatasetKind.TRANSLATIONS:
        raise click.UsageError(
            f"--task, --source and --target are for translations, {data.name} holds {dataset.kind}"
        )
    opened = verified(chosen_bundle(bundle))
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(opened, **run))
        other = stack.enter_context(open_session(reference, **run)) if reference else None
        shown = stack.enter_context(progress())
        shown.step(f"evaluating with {session.report.facts}", len(dataset))
        measured = functools.partial(
            measure,
            dataset=dataset,
            max_rows=batch,
            wishes=wishes,
            seed=seed,
            on_progress=shown.advance,
        )
        found = measured(session, metric=metric, reference=other)
        theirs = difference = None
        if other is not None and not found.reference:
            shown.step("evaluating the reference", len(dataset))
            theirs = measured(other, metric=found.metric)
            difference = compare_evaluations(theirs, found, np.random.default_rng(seed))
    if as_json:
        document = {"bundle": str(opened.path), "evaluation": found.to_dict()}
        if theirs is not None and difference is not None:
            document |= {"reference": theirs.to_dict(), "difference": encode(difference)}
        emit_json(document)
    else:
        show_evaluation(console(), found, theirs, difference)

"""Backend "auto": what ``tfx tune`` measured as the fastest on this machine, or an error."""

from __future__ import annotations

import dataclasses
import logging
import os

from tfx.bundle import Bundle
from tfx.errors import BackendError

from ..open_options import OpenOptions
from .candidates import Trial
from .choices import TUNE_HINT, Tuning, chosen_bundle, stored_choice

log = logging.getLogger(__name__)

# "1" lets open_session(backend="auto") measure where no choice is stored.
TUNE_VARIABLE = "TFX_TUNE"


def resolve(bundle: Bundle, options: OpenOptions) -> tuple[Bundle, OpenOptions, str]:
    """Find what runs a bundle fastest here, among what the caller leaves open.

    Args:
        bundle: A bundle with a graph.
        options: What the caller asks for: threads and a precision leave only candidates with
            those, ``tune`` says whether to measure where there is no choice, None for what
            ``TFX_TUNE`` says.

    Returns:
        The bundle to run, the options with its backend, precision and threads named, and why in
        one sentence.

    Raises:
        BackendError: If there is no choice that may be used, or none of that kind.
    """
    if options.device not in ("", "cpu"):
        raise BackendError(
            f"backend 'auto' chooses for cpu, not for {options.device!r}",
            hint="Name a backend, or use device='cpu'.",
        )
    allowed = _may_tune() if options.tune is None else options.tune
    try:
        tuning = stored_choice(bundle)
        trial = _best(bundle, tuning, options)
        chosen = chosen_bundle(bundle, trial)
    except BackendError as error:
        if not allowed:
            raise
        tuning = _measured(bundle, options, error)
        trial = _best(bundle, tuning, options)
        chosen = chosen_bundle(bundle, trial)
    way = trial.candidate
    named = dataclasses.replace(
        options, backend=way.backend, precision=way.precision, threads=way.threads
    )
    return chosen, named, tuning.said(trial)


def _best(bundle: Bundle, tuning: Tuning, options: OpenOptions) -> Trial:
    threads, precision = options.threads, options.precision
    if trial := tuning.best(threads=threads, precision=precision):
        return trial
    asked = [f"{threads} threads"] if threads is not None else []
    asked += [f"precision {precision!r}"] if precision else []
    hint = TUNE_HINT.format(path=bundle.path)
    raise BackendError(
        f"no candidate with {' and '.join(asked)} was measured for {bundle.path}",
        hint=f"{hint} --threads {threads}" if threads is not None else "Name a backend.",
    )


def _measured(bundle: Bundle, options: OpenOptions, reason: BackendError) -> Tuning:
    from tfx.console import Progress

    from .plan import FIRST_USE_SECONDS, TuningPlan
    from .tuner import tune_bundle

    class Quiet(Progress):
        """Says what happens to the log, as this is no command."""

        def step(self, description: str, total: int | None = None) -> None:
            """Log the next step."""
            log.info("%s", description)

    log.warning("%s; measuring for about %g s", reason, FIRST_USE_SECONDS)
    plan = TuningPlan(
        threads=() if options.threads is None else (options.threads,),
        seconds=FIRST_USE_SECONDS,
        torch=False,
        trust=options.trust,
    )
    tuning, problem = tune_bundle(bundle, plan, progress=Quiet(), fresh=False)
    if problem is not None:
        log.warning("%s", problem.with_hint)
    return tuning


def _may_tune() -> bool:
    text = os.environ.get(TUNE_VARIABLE, "")
    if text not in ("", "0", "1"):
        raise BackendError(
            f"{TUNE_VARIABLE} is {text!r}, expected 0 or 1", hint=f"Unset {TUNE_VARIABLE}."
        )
    return text == "1"

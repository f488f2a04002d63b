"""Backend "auto": what ``tfx tune`` measured as the fastest on this machine, or an error."""

from __future__ import annotations

import logging
import os

from tfx.bundle import Bundle
from tfx.errors import BackendError

from .candidates import Trial, said
from .choices import TUNE_HINT, Tuning, chosen_bundle, stored_choice

log = logging.getLogger(__name__)

# "1" lets open_session(backend="auto") measure where no choice is stored.
TUNE_VARIABLE = "TFX_TUNE"


def resolve(
    bundle: Bundle,
    *,
    device: str,
    threads: int | None,
    precision: str,
    tune: bool | None,
    trust: bool,
) -> tuple[Bundle, Trial, str]:
    """Find what runs a bundle fastest here, among what the caller leaves open.

    Args:
        bundle: A bundle with a graph.
        device: Where; "" or "cpu".
        threads: Only candidates with so many; None for any.
        precision: Only candidates that were asked to compute in it; "" for any.
        tune: Whether to measure where there is no choice; None for what ``TFX_TUNE`` says.
        trust: Whether a factory's Python file may run.

    Returns:
        The bundle to run, how, and why in one sentence.

    Raises:
        BackendError: If there is no choice that may be used, or none of that kind.
    """
    if device not in ("", "cpu"):
        raise BackendError(
            f"backend 'auto' chooses for cpu, not for {device!r}",
            hint="Name a backend, or use device='cpu'.",
        )
    allowed = _may_tune() if tune is None else tune
    try:
        tuning = stored_choice(bundle)
        trial = _best(bundle, tuning, threads, precision)
        chosen = chosen_bundle(bundle, trial)
    except BackendError as error:
        if not allowed:
            raise
        tuning = _measured(bundle, threads, trust, error)
        trial = _best(bundle, tuning, threads, precision)
        chosen = chosen_bundle(bundle, trial)
    return chosen, trial, tuning.said(trial)


def _best(bundle: Bundle, tuning: Tuning, threads: int | None, precision: str) -> Trial:
    if trial := tuning.best(threads=threads, precision=precision):
        return trial
    asked = [f"{threads} threads"] if threads is not None else []
    asked += [f"precision {precision!r}"] if precision else []
    hint = TUNE_HINT.format(path=bundle.path)
    raise BackendError(
        f"no candidate with {' and '.join(asked)} was measured for {bundle.path}",
        hint=f"{hint} --threads {threads}" if threads is not None else "Name a backend.",
    )


def _measured(bundle: Bundle, threads: int | None, trust: bool, reason: BackendError) -> Tuning:
    from tfx.console import Progress

    from .tuner import FIRST_USE_SECONDS, TuningPlan, tune_bundle

    class Quiet(Progress):
        """Says what happens to the log, as this is no command."""

        def step(self, description: str, total: int | None = None) -> None:
            """Log the next step."""
            log.info("%s", description)

    log.warning("%s; measuring for about %g s", reason, FIRST_USE_SECONDS)
    plan = TuningPlan(
        threads=() if threads is None else (threads,),
        seconds=FIRST_USE_SECONDS,
        torch=False,
        trust=trust,
    )
    tuning, problem = tune_bundle(bundle, plan, progress=Quiet(), fresh=False)
    if problem is not None:
        log.warning("%s", said(problem))
    return tuning


def _may_tune() -> bool:
    text = os.environ.get(TUNE_VARIABLE, "")
    if text not in ("", "0", "1"):
        raise BackendError(
            f"{TUNE_VARIABLE} is {text!r}, expected 0 or 1", hint=f"Unset {TUNE_VARIABLE}."
        )
    return text == "1"

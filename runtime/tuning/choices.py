"""What ``tfx tune`` chose: kept in the user's cache, used only where everything is as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tfx import __version__
from tfx.bundle import Bundle, open_bundle
from tfx.codec import DecodeError, decode, encode
from tfx.errors import BackendError, BundleError, listing
from tfx.extras import DISTRIBUTION, version_of

from ..backend import GRAPH_BACKENDS
from ..cache import cache_folder, found, keep, limit_mb, make_folder
from ..cpus import read_cpu, usable_cpus
from .candidates import ELIGIBLE, Outcome, Trial

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1

TUNE_AGAIN = "Delete it, and tune again."

# A tuning that waits for another one gives up after this many seconds.
WAIT_S = 900.0

TUNE_HINT = "Run: tfx tune {path}"

# Graph backend -> the distributions that bring its engine; of each that is installed, the version
# is a condition.
ENGINES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a choice depends on, besides the bundle.

    Attributes:
        cpu: Model name.
        flags: Its instruction sets and features, sorted.
        usable_cpus: What affinity and the container's quota leave.
        versions: Distribution name to version: ours, numpy, and the engines that are installed.
    """

    cpu: str
    flags: tuple[str, ...]
    usable_cpus: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Tuning:
    """One tuning of one bundle.

    Attributes:
        bundle: The folder it was in.
        digest: Of the bundle.
        created: UTC, ISO 8601.
        conditions: Under which it was measured.
        shapes: Name to sizes of the axes, e.g. ``{"1x128": {"batch": 1, "sequence": 128}}``.
        weights: Name to how much a shape counts.
        trials: All candidates; one of them was chosen.
        rounds: Blocks of calls each of the last candidates was timed in.
        duration_s: How long it took.
        notes: What a reader must know, one sentence each.
    """

    bundle: str
    digest: str
    created: str
    conditions: Conditions
    shapes: Mapping[str, Mapping[str, int]]
    weights: Mapping[str, int]
    trials: tuple[Trial, ...]
    rounds: int
    duration_s: float
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        # A file is checked like this too: what passes can be used without more questions.
        chosen = [trial for trial in self.trials if trial.outcome is Outcome.CHOSEN]
        problems = [] if len(chosen) == 1 else [f"{len(chosen)} are chosen, expected 1"]
        problems += [
            f"{trial.candidate} has no time, and is {trial.outcome}"
            for trial in self.trials
            if trial.outcome in ELIGIBLE and not (trial.score_ms and trial.score_ms > 0)
        ]
        if problems:
            raise BackendError(listing("no choice can be made of these trials:", problems))

    @property
    def chosen(self) -> Trial:
        """The fastest of those that were right and within the budget."""
        return next(trial for trial in self.trials if trial.outcome is Outcome.CHOSEN)

    @property
    def reference(self) -> Trial | None:
        """PyTorch, where it was timed."""
        trials = (one for one in self.trials if one.outcome is Outcome.REFERENCE)
        return next((one for one in trials if one.score_ms), None)

    def best(self, *, threads: int | None = None, precision: str = "") -> Trial | None:
        """The choice among the candidates that a caller leaves; None if there is none.

        Args:
            threads: Only with so many; None for any.
            precision: Only those that were asked to compute in it; "" for any.
        """
        left = [
            trial
            for trial in self.trials
            if trial.outcome in ELIGIBLE
            and threads in (None, trial.candidate.threads)
            and precision in ("", trial.candidate.precision)
        ]
        order = list(ELIGIBLE)
        # What was measured to the end comes first: a first round is rough.
        return min(
            left,
            key=lambda trial: (order.index(trial.outcome), trial.score_ms or 0.0),
            default=None,
        )

    def said(self, trial: Trial) -> str:
        """Why ``trial`` runs, in one sentence."""
        timed = sum(one.score_ms is not None for one in self.trials) - (self.reference is not None)
        shapes = ", ".join(self.shapes)
        text = f"chosen by tune on {self.created[:10]} among {timed} candidates for {shapes}"
        if trial is not self.chosen:
            text += ", of those with what the caller asked for"
        if self.reference and self.reference.score_ms and trial.score_ms:
            text += f": {self.reference.score_ms / trial.score_ms:.2g} times as fast as torch"
        return text


def conditions_here() -> Conditions:
    """The conditions of this process."""
    cpu = read_cpu()
    names = ("numpy", *(name for backend in GRAPH_BACKENDS for name in ENGINES[backend]))
    versions = {name: version for name in names if (version := version_of(name))}
    return Conditions(
        cpu.model,
        tuple(sorted(cpu.flags)),
        usable_cpus(),
        {DISTRIBUTION: __version__} | versions,
    )


def differences(then: Conditions, now: Conditions) -> list[str]:
    """What of the conditions has changed, in words."""
    found = []
    if then.cpu != now.cpu:
        found.append(f"the CPU was {then.cpu or 'unknown'}, is {now.cpu or 'unknown'}")
    if changed := sorted(set(then.flags) ^ set(now.flags)):
        found.append(f"CPU flags differ: {', '.join(changed[:5])}")
    if then.usable_cpus != now.usable_cpus:
        found.append(f"usable CPUs were {then.usable_cpus}, are {now.usable_cpus}")
    for name in sorted(then.versions.keys() | now.versions.keys()):
        before, after = then.versions.get(name, "absent"), now.versions.get(name, "absent")
        if before != after:
            found.append(f"{name} was {before}, is {after}")
    return found


def choices_folder() -> Path:
    """Where choices are kept; it need not exist."""
    return cache_folder() / "choices"


def choice_file(bundle: Bundle, conditions: Conditions) -> Path:
    """The file of a bundle's choice under these conditions."""
    key = json.dumps([SCHEMA_VERSION, bundle.digest, encode(conditions)], sort_keys=True)
    return choices_folder() / f"{bundle.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def store_choice(bundle: Bundle, tuning: Tuning) -> Path:
    """Keep a choice, in place of an earlier one.

    Raises:
        BackendError: If it cannot be kept.
    """
    path = choice_file(bundle, tuning.conditions)
    if not limit_mb():
        raise BackendError(
            "the choice is not kept: the cache is turned off", hint="Unset TFX_CACHE_MB."
        )
    text = json.dumps({"schema": SCHEMA_VERSION, **encode(tuning)}, indent=1, allow_nan=False)
    if not keep(path, lambda file: file.write_text(text, encoding="utf-8")):
        raise BackendError(
            f"the choice cannot be kept in {path.parent}",
            hint="Free space there, or set XDG_CACHE_HOME to a folder that can be written.",
        )
    return path


def stored_choice(bundle: Bundle) -> Tuning:
    """The choice for a bundle on this machine as it is now.

    Raises:
        BackendError: If there is none, or one that must not be used; says which and why.
    """
    now = conditions_here()
    path = choice_file(bundle, now)
    hint = TUNE_HINT.format(path=bundle.path)
    if not found(path):
        reason = _stale(bundle, now)
        raise BackendError(
            f"no choice is stored for {bundle.path} on this machine{reason}", hint=hint
        )
    try:
        tuning = read_choice(path)
    except BackendError as error:
        raise BackendError(f"the stored choice is not used: {error}", hint=hint) from error
    if tuning.digest != bundle.digest or differences(tuning.conditions, now):
        raise BackendError(f"the stored choice is not used: {path} is of another", hint=hint)
    return tuning


def read_choice(path: Path) -> Tuning:
    """Read a file of ``store_choice``.

    Raises:
        BackendError: If it cannot be read, or is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BackendError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{path} is damaged: {error}", hint=TUNE_AGAIN) from error
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise BackendError(
            f"{path} was written by a newer version of tfx: its schema is {schema}, expected "
            f"{SCHEMA_VERSION}",
            hint="Upgrade: pip install --upgrade tfx-toolkit",
        )
    if schema != SCHEMA_VERSION:
        raise BackendError(f"{path} is damaged: its schema is {schema!r}", hint=TUNE_AGAIN)
    try:
        return decode(Tuning, document)
    except DecodeError as error:
        raise BackendError(
            listing(f"{path} is damaged:", error.problems), hint=TUNE_AGAIN
        ) from error


def chosen_bundle(bundle: Bundle, trial: Trial) -> Bundle:
    """The bundle of a family that a trial ran; its files are not read.

    Args:
        bundle: The one that was tuned.
        trial: One of its trials.

    Raises:
        BackendError: If it is not there any more, or another one is.
    """
    candidate = trial.candidate
    if candidate.digest == bundle.digest:
        return bundle
    path = bundle.path.resolve().parent / candidate.bundle
    hint = TUNE_HINT.format(path=bundle.path)
    try:
        child = open_bundle(path, verify=False)
    except BundleError as error:
        raise BackendError(f"the stored choice is not used: {error}", hint=hint) from error
    if child.digest != candidate.digest:
        raise BackendError(
            f"the stored choice is not used: {path} is another bundle now", hint=hint
        )
    return child


def now_utc() -> str:
    """The time, as manifests have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Wait until no other process of this user tunes: two at once would measure each other.

    Yields:
        Whether there was another one to wait for.

    Raises:
        BackendError: If it is not done within ``WAIT_S``.
    """
    try:
        import fcntl

        folder = choices_folder()
        make_folder(folder)
        stream = (folder / "lock").open("w")
    except (ImportError, OSError) as error:  # another system, or a cache that is read only
        log.info("does not wait for other tunings: %s", error)
        yield False
        return
    waited = False
    with stream:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not waited:
                    log.warning("another process tunes: waiting for it")
                waited = True
                if time.monotonic() - started > WAIT_S:
                    raise BackendError(
                        f"another process tunes for more than {WAIT_S:g} s",
                        hint="End it, or try again later.",
                    ) from error
                time.sleep(0.2)
        yield waited  # the lock goes with the file, also where the process is killed


def _stale(bundle: Bundle, now: Conditions) -> str:
    """What stands in the way of the newest choice that is nearly right; "" without any."""
    folder = choices_folder()
    near: list[tuple[str, str]] = []
    for path in folder.glob("*.json") if folder.is_dir() else ():
        try:
            tuning = read_choice(path)
        except BackendError as error:
            log.info("left out: %s", error)
            continue
        if tuning.digest == bundle.digest:
            changed = differences(tuning.conditions, now)
        elif tuning.bundle == str(bundle.path.resolve()):
            changed = ["the bundle was made again"]
        else:
            continue
        near.append((tuning.created, "; ".join(changed)))
    if not near:
        return ""
    created, changes = max(near)
    return f"; the one of {created[:10]} is not used: {changes}"

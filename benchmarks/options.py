"""The options of ``tfx bench`` in groups, each group one value; and the plan they come to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from tfx.bundle import Bundle
from tfx.console import DATA, FILE, FOLDER
from tfx.runtime.backend import BACKENDS, PRECISIONS

from .measuring.scenario import FIXED, Load, Scenario
from .measuring.workload import (
    DEFAULT_BATCHES,
    DEFAULT_LENGTHS,
    DEFAULT_LIMIT_S,
    DEFAULT_NEW_TOKENS,
    DEFAULT_PROMPTS,
    DEFAULT_ROUNDS,
    DEFAULT_SECONDS,
    GATE_PROCESSES,
    GATE_TIMES,
    Plan,
    Way,
)

OUTPUT = click.Path(path_type=Path, dir_okay=False)

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured; ``None``, ``()`` and 0 stand for an option that was not given.

    Attributes:
        backends: Names in ``BACKENDS``.
        precisions: Names in ``PRECISIONS``.
        batches: Sizes.
        lengths: Of feeds.
        prompts: Tokens of a prompt.
        new_tokens: Written after it.
        rounds: As in ``Plan``.
        seconds: As in ``Plan``.
        limit_s: As in ``Plan``.
        processes: As in ``Plan``.
        threads: As in ``Plan``.
        trust: As in ``Plan``.
        seed: As in ``Plan``.
        scenario: Name of a ``Scenario``.
        qps: As in ``Load``.
        lengths_of: ``Load.lengths``.
        with_preprocessing: ``Load.preprocessing``.
        data: Samples.
        metric: As in ``Plan``.
        samples: As in ``Plan``.
    """

    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    new_tokens: int | None = None
    rounds: int = DEFAULT_ROUNDS
    seconds: float = DEFAULT_SECONDS
    limit_s: float = DEFAULT_LIMIT_S
    processes: int | None = None
    threads: int | None = None
    trust: bool = False
    seed: int = 0
    scenario: str | None = None
    qps: float = 0.0
    lengths_of: str = FIXED
    with_preprocessing: bool = False
    data: Path | None = None
    metric: str = "auto"
    samples: int | None = None

    @property
    def of_feeds(self) -> bool:
        """Whether an option says something that only arrays or texts have, and prompts have not."""
        return bool(self.lengths or self.qps or self.lengths_of != FIXED or self.with_preprocessing)


@dataclass(frozen=True, slots=True)
class Files:
    """Where results go.

    Attributes:
        output: The JSON document.
        csv_file: A line a row.
        html_file: The page.
        resume: An earlier ``output`` to go on with.
    """

    output: Path | None = None
    csv_file: Path | None = None
    html_file: Path | None = None
    resume: Path | None = None

    @property
    def target(self) -> Path | None:
        """The JSON document that grows: what is gone on with, unless another is named."""
        return self.output or self.resume

    @property
    def written(self) -> list[Path]:
        """All of them that are written."""
        return [path for path in (self.target, self.csv_file, self.html_file) if path is not None]


def grouped(kind: type, name: str, *options: Decorator) -> Decorator:
    """Options that a command is given as one value.

    Args:
        kind: A dataclass; an option's name in Python is that of a field.
        name: Of the command's argument that takes it.
        *options: As ``click.option`` gives them, in the order of the help.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def packed(**given: Any) -> Any:
            mine = {field.name: given.pop(field.name) for field in fields(kind)}
            return function(**given, **{name: kind(**mine)})

        command: Command = packed
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# In the order of the help.
ASKED = (
    click.option(
        "--backend",
        "backends",
        multiple=True,
        type=click.Choice(list(BACKENDS)),
        help="Only these.",
    ),
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        type=click.Choice(list(PRECISIONS)),
        help="Each backend in these; default: the bundle's own.",
    ),
    click.option("--batch", "batches", multiple=True, type=int, help="Batch sizes; default: 1, 8."),
    click.option("--length", "lengths", multiple=True, type=int, help="Lengths; default: 128."),
    click.option(
        "--prompt-tokens",
        "prompts",
        multiple=True,
        type=int,
        help="Of the generation scenario: tokens read first; default: 128.",
    ),
    click.option("--new-tokens", type=int, help="Of the same: tokens written; default: 64."),
    click.option(
        "--rounds", default=DEFAULT_ROUNDS, help="Most rounds of a shape.", show_default=True
    ),
    click.option(
        "--seconds", default=DEFAULT_SECONDS, help="Begin no round after this.", show_default=True
    ),
    click.option(
        "--limit",
        "limit_s",
        default=DEFAULT_LIMIT_S,
        help="Seconds a row may take to load, or for one block.",
        show_default=True,
    ),
    click.option(
        "--processes",
        type=int,
        help="Of each row: rounds are divided among them; default: 1, with --fail-on slower "
        f"{GATE_PROCESSES}, and up to {GATE_TIMES} times as many while it is unsure.",
    ),
    click.option("--threads", type=int, help="CPU threads; default: all this process may use."),
    click.option("--trust", is_flag=True, help="Let the factory's Python file run."),
    click.option("--seed", default=0, help="Of feeds and order.  [default: 0]"),
    click.option(
        "--scenario",
        type=click.Choice([str(one) for one in Scenario]),
        help="When queries are sent, as in MLPerf, or generation, which is the default of bundles "
        "with a cache; of others: single-stream.",
    ),
    click.option("--qps", default=0.0, help="Queries per second of the server scenario."),
    click.option(
        "--lengths",
        "lengths_of",
        default=FIXED,
        show_default=True,
        help="fixed (--length), zipf up to it, or a file of texts.",
    ),
    click.option("--with-preprocessing", is_flag=True, help="Send texts: tokenization counts."),
    click.option("--eval", "data", type=DATA, help="Samples that accuracy is measured on."),
    click.option("--metric", default="auto", help="Of --eval; default: the task's own."),
    click.option("--samples", type=int, help="At most so many of --eval, drawn; default: all."),
)

FILES = (
    click.option("-o", "--output", type=OUTPUT, help="Also write the JSON document, as it grows."),
    click.option("--csv", "csv_file", type=OUTPUT, help="Also write a line a row."),
    click.option("--html", "html_file", type=OUTPUT, help="Also write a page with plots."),
    click.option("--resume", type=FILE, help="Go on with what --output holds."),
)


def asked_options(function: Command) -> Command:
    """Add the options of what is measured, given as one ``Asked``."""
    return grouped(Asked, "asked", *ASKED)(function)


def file_options(function: Command) -> Command:
    """Add the options of what is written, given as one ``Files``."""
    return grouped(Files, "files", *FILES)(function)


def gate_options(function: Command) -> Command:
    """Add ``--baseline`` and ``--fail-on``."""
    baseline = click.option(
        "--baseline",
        "baselines",
        multiple=True,
        type=FILE,
        help="Compare with an earlier --output, best of --processes 9; several are surer.",
    )
    fail_on = click.option(
        "--fail-on", help="Exit code 1 for rows beyond it, e.g. slower:10%,accuracy:0.5."
    )
    return baseline(fail_on(function))


def kept_options(function: Command) -> Command:
    """Add ``--history`` and ``--save``."""
    history = click.option(
        "--history", type=FOLDER, help="Show how figures of stored --output files moved."
    )
    save = click.option(
        "--save", type=FOLDER, help="Folder to keep results in, by machine and date."
    )
    return history(save(function))


def plan_of(asked: Asked, bundles: Sequence[Bundle], *, processes: int) -> Plan:
    """The plan that options come to, for some bundles.

    Args:
        asked: The options.
        bundles: What is measured: its kind decides what is usual.
        processes: Of each row, where the options name no number.

    Raises:
        click.UsageError: If options are of two scenarios.
        RecipeError: If nothing can be measured like this.
    """
    from .measuring.family import usual_scenario

    scenario = asked.scenario
    if scenario is None:
        scenario = Scenario.SINGLE_STREAM if asked.of_feeds else usual_scenario(bundles)
    writes = scenario == Scenario.GENERATION
    if writes and asked.lengths:
        raise click.UsageError(
            "--length is of feeds: the generation scenario takes --prompt-tokens"
        )
    if asked.prompts and not writes:
        raise click.UsageError("--prompt-tokens is for --scenario generation")
    new_tokens = asked.new_tokens
    if new_tokens is None:
        new_tokens = DEFAULT_NEW_TOKENS if writes else 0
    usual_lengths = DEFAULT_PROMPTS if writes else DEFAULT_LENGTHS
    return Plan(
        batches=tuple(dict.fromkeys(asked.batches)) or DEFAULT_BATCHES,
        lengths=tuple(dict.fromkeys(asked.prompts or asked.lengths)) or usual_lengths,
        rounds=asked.rounds,
        seconds=asked.seconds,
        limit_s=asked.limit_s,
        threads=asked.threads,
        trust=asked.trust,
        seed=asked.seed,
        data="" if asked.data is None else str(asked.data),
        metric=asked.metric,
        samples=asked.samples,
        load=Load(scenario, asked.lengths_of, asked.with_preprocessing, asked.qps, new_tokens),
        processes=processes if asked.processes is None else asked.processes,
    )


def ways_of(asked: Asked, bundles: Sequence[Bundle], plan: Plan) -> list[Way]:
    """Every backend that is asked for, or usual, in every precision."""
    from .measuring.family import usual_backends

    backends = asked.backends or usual_backends(bundles, writes=plan.load.writes)
    return [
        Way(backend, precision)
        for backend in dict.fromkeys(backends)
        for precision in dict.fromkeys(asked.precisions or ("",))
    ]

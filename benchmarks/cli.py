"""``tfx bench``: bundles and a plan in, one measurement, its tables out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from tfx.codec import encode
from tfx.console import DATA, FILE, FOLDER, chosen_bundle, console, emit_json, json_option, progress
from tfx.errors import BackendError, ParityError
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

BACKEND = click.Choice(list(BACKENDS))
OUTPUT = click.Path(path_type=Path, dir_okay=False)
PRECISION = click.Choice(list(PRECISIONS))


@click.command
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=FOLDER)
@click.option("--backend", "backends", multiple=True, type=BACKEND, help="Only these.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=PRECISION,
    help="Each backend in these; default: the bundle's own.",
)
@click.option("--batch", "batches", multiple=True, type=int, help="Batch sizes; default: 1, 8.")
@click.option("--length", "lengths", multiple=True, type=int, help="Lengths; default: 128.")
@click.option(
    "--prompt-tokens",
    "prompts",
    multiple=True,
    type=int,
    help="Of the generation scenario: tokens read first; default: 128.",
)
@click.option("--new-tokens", type=int, help="Of the same: tokens written; default: 64.")
@click.option("--rounds", default=DEFAULT_ROUNDS, help="Most rounds of a shape.", show_default=True)
@click.option(
    "--seconds", default=DEFAULT_SECONDS, help="Begin no round after this.", show_default=True
)
@click.option(
    "--limit",
    "limit_s",
    default=DEFAULT_LIMIT_S,
    help="Seconds a row may take to load, or for one block.",
    show_default=True,
)
@click.option(
    "--processes",
    type=int,
    help="Of each row: rounds are divided among them; default: 1, with --fail-on slower "
    f"{GATE_PROCESSES}, and up to {GATE_TIMES} times as many while it is unsure.",
)
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option("--trust", is_flag=True, help="Let the factory's Python file run.")
@click.option("--seed", default=0, help="Of feeds and order.  [default: 0]")
@click.option(
    "--scenario",
    type=click.Choice([str(one) for one in Scenario]),
    help="When queries are sent, as in MLPerf, or generation, which is the default of bundles with "
    "a cache; of others: single-stream.",
)
@click.option("--qps", default=0.0, help="Queries per second of the server scenario.")
@click.option(
    "--lengths",
    "lengths_of",
    default=FIXED,
    show_default=True,
    help="fixed (--length), zipf up to it, or a file of texts.",
)
@click.option("--with-preprocessing", is_flag=True, help="Send texts: tokenization counts.")
@click.option("--eval", "data", type=DATA, help="Samples that accuracy is measured on.")
@click.option("--metric", default="auto", help="Of --eval; default: the task's own.")
@click.option("--samples", type=int, help="At most so many of --eval, drawn; default: all.")
@click.option("--profile", is_flag=True, help="Also say what each row's time goes to.")
@click.option("-o", "--output", type=OUTPUT, help="Also write the JSON document, as it grows.")
@click.option("--csv", "csv_file", type=OUTPUT, help="Also write a line a row.")
@click.option("--html", "html_file", type=OUTPUT, help="Also write a page with plots.")
@click.option("--resume", type=FILE, help="Go on with what --output holds.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=FILE,
    help="Compare with an earlier --output, best of --processes 9; several are surer.",
)
@click.option("--fail-on", help="Exit code 1 for rows beyond it, e.g. slower:10%,accuracy:0.5.")
@click.option("--history", type=FOLDER, help="Show how figures of stored --output files moved.")
@click.option("--save", type=FOLDER, help="Folder to keep results in, by machine and date.")
@json_option
def bench(
    bundles: tuple[Path, ...],
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    prompts: tuple[int, ...],
    new_tokens: int | None,
    rounds: int,
    seconds: float,
    limit_s: float,
    processes: int | None,
    threads: int | None,
    trust: bool,
    seed: int,
    scenario: str | None,
    qps: float,
    lengths_of: str,
    with_preprocessing: bool,
    data: Path | None,
    metric: str,
    samples: int | None,
    profile: bool,
    output: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
    resume: Path | None,
    baselines: tuple[Path, ...],
    fail_on: str | None,
    history: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure a family of bundles on every backend that works here.

    Without BUNDLE: the newest one and its family. Rows of a shape run in interleaved rounds, each
    in a process of its own, and are compared in speed, and in what they answer, with PyTorch, which
    runs once for bundles of one source. Bundles with a cache are measured by the text they write,
    beside transformers' generate. With --eval the task's metric stands beside the speed, as
    in tfx evaluate; without labels, how far answers agree with PyTorch's.
    """
    from tfx.workspace import family_of

    from .measuring.baseline import (
        Limits,
        Outcome,
        RegressionError,
        check_machine,
        compare_runs,
        limits_of,
        same_runs,
        show_changes,
        unsure_rows,
        versions_that_differ,
    )
    from .measuring.family import usual_backends, usual_scenario
    from .measuring.machine import this_machine
    from .measuring.profiled import show_spent, with_profiles
    from .measuring.report import BenchReport, Status
    from .measuring.resume import continued
    from .measuring.runner import measure
    from .pages.output import read_report, sole_writer, write_csv, write_html, write_json
    from .pages.stored import save_result
    from .pages.table import show_report
    from .results import read_results, reports_of, show_history

    if history is not None:
        show_history(console(), reports_of(read_results(history)))
        return
    if fail_on is not None and not baselines:
        raise click.UsageError("--fail-on needs --baseline, the run to compare with")
    limits = Limits() if fail_on is None else limits_of(fail_on)
    before = same_runs([read_report(path) for path in baselines]) if baselines else None
    if processes is None:
        processes = 1 if limits.slower is None else GATE_PROCESSES
    chosen = [chosen_bundle(path) for path in dict.fromkeys(bundles)] or family_of(
        chosen_bundle(None)
    )
    if scenario is None:
        asked_of_feeds = lengths or qps or lengths_of != FIXED or with_preprocessing
        scenario = Scenario.SINGLE_STREAM if asked_of_feeds else usual_scenario(chosen)
    writes = scenario == Scenario.GENERATION
    if writes and lengths:
        raise click.UsageError(
            "--length is of feeds: the generation scenario takes --prompt-tokens"
        )
    if prompts and not writes:
        raise click.UsageError("--prompt-tokens is for --scenario generation")
    if new_tokens is None:
        new_tokens = DEFAULT_NEW_TOKENS if writes else 0
    plan = Plan(
        batches=tuple(dict.fromkeys(batches)) or DEFAULT_BATCHES,
        lengths=tuple(dict.fromkeys(prompts or lengths))
        or (DEFAULT_PROMPTS if writes else DEFAULT_LENGTHS),
        rounds=rounds,
        seconds=seconds,
        limit_s=limit_s,
        threads=threads,
        trust=trust,
        seed=seed,
        data="" if data is None else str(data),
        metric=metric,
        samples=samples,
        load=Load(scenario, lengths_of, with_preprocessing, qps, new_tokens),
        processes=processes,
    )
    ways = [
        Way(backend, precision)
        for backend in dict.fromkeys(backends or usual_backends(chosen, writes=writes))
        for precision in dict.fromkeys(precisions or ("",))
    ]
    target = output or resume
    written = [path for path in (target, csv_file, html_file) if path is not None]
    click.get_current_context().with_resource(sole_writer(written))
    machine = this_machine()
    if before is not None:
        check_machine(before, machine)
    earlier = None if resume is None else continued(resume, plan, machine)
    kept: list[BenchReport] = []

    def keep(found: BenchReport) -> None:
        kept[:] = [found]
        if target is not None:
            write_json(target, found)

    def more(found: BenchReport) -> list[str]:
        return [] if before is None else unsure_rows(before, found, limits, GATE_TIMES * processes)

    interrupted = False
    with progress() as shown:
        try:
            report = measure(
                chosen, plan, ways, machine, progress=shown, earlier=earlier, keep=keep, more=more
            )
            if profile:
                report = with_profiles(report, chosen, progress=shown, keep=keep)
        except KeyboardInterrupt:
            if not kept or not kept[0].rows:
                raise
            report, interrupted = kept[0], True
    if csv_file is not None:
        write_csv(csv_file, report)
    if html_file is not None:
        write_html(html_file, report)
    if save is not None and not interrupted:
        # What is kept is read by others: where the file lay here tells them nothing.
        named = replace(report, plan=replace(report.plan, data=Path(report.plan.data).name))
        save_result(save, "bench", report.created, named.to_dict(), report.machine)
    changes = [] if before is None else compare_runs(before, report, limits, seed=seed)
    if as_json:
        found = {"baseline": [encode(one) | {"outcome": one.outcome} for one in changes]}
        emit_json(report.to_dict() | (found if before else {}))
    else:
        show_report(console(), report)
        show_spent(console(), report)
        if before is not None:
            show_changes(console(), changes, limits)
            for line in versions_that_differ(before, report):
                click.echo(f"note: {line}")
    if interrupted:
        where = f"--resume {target}" if target else "--output FILE, then --resume FILE"
        left = "; ".join(report.unfinished) or "where the time of every row goes"
        raise BackendError(f"interrupted, without: {left}", hint=f"Go on with {where}.")
    if all(row.status is Status.NOT_RUN for row in report.rows):
        raise BackendError("nothing could be measured", hint="See what is missing with: tfx doctor")
    if wrong := sorted({row.name for row in report.rows if row.status is Status.WRONG}):
        raise ParityError(f"outputs are wrong: {', '.join(wrong)}", hint="Run tfx check on it.")
    if fail_on and (worse := [one for one in changes if one.outcome is Outcome.FAILED]):
        names = "; ".join(f"{one.name}, {one.title}" for one in worse)
        raise RegressionError(
            f"worse than the baseline by more than {fail_on}: {names}",
            hint="Measure again on a quiet machine; if it stays, something became worse.",
        )

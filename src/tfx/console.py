"""What commands share: the bundle argument, progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .bundle import Bundle, open_bundle
from .errors import TfxError

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
# Samples: a file, or a folder of images.
DATA = click.Path(path_type=Path, exists=True)


def json_option(function: F) -> F:
    """Add ``--json``: one JSON document on stdout, everything else on stderr."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Machine-readable result on stdout."
    )(function)


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide enough not to cut a table when the output is a file or a pipe."""
    from rich.console import Console  # 60 ms; not needed for --help

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else 160, highlight=False, soft_wrap=False
    )


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """Our own errors as click's: message, hint, exit code 1.

    For commands of their own; those of ``tfx`` are told by its group.
    """
    try:
        yield
    except TfxError as error:
        raise click.ClickException(f"{error}\n{error.hint}".rstrip()) from error


def emit_json(document: Any) -> None:
    """Print one JSON document on stdout; NaN would not be JSON and is an error."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def chosen_bundle(path: Path | None, *, verify: bool = False) -> Bundle:
    """The bundle at ``path``, or the newest of the current folder, said on stderr.

    Raises:
        BundleError: If there is none, or it is damaged.
    """
    if path is not None:
        return open_bundle(path, verify=verify)
    from . import workspace

    bundle = workspace.newest()
    click.echo(f"using {bundle.path} ({bundle.manifest.created[:19]})", err=True)
    if verify:
        bundle.verify()
    return bundle


class Progress:
    """Steps of a long command: a live line on a terminal, plain lines otherwise.

    Use as a context manager; ``step`` names what happens next, ``advance`` counts.
    """

    def __init__(self) -> None:
        self._live: Any = None
        self._task: Any = None

    def step(self, description: str, total: int | None = None) -> None:
        """Begin the next step, of ``total`` parts if they can be counted."""
        if self._live is None:
            click.echo(f"{description} ...", err=True)
            return
        if self._task is not None:
            self._live.remove_task(self._task)
        self._task = self._live.add_task(description, total=total)

    def say(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        if self._live is None:
            click.echo(text, err=True)
            return
        self._live.console.print(text, markup=False)

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more parts of the step are done."""
        if self._live is not None and self._task is not None:
            self._live.advance(self._task, count)

    def reach(self, count: int) -> None:
        """Say that ``count`` parts of the step are done, all told."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=count)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Show the progress of the block on stderr."""
    shown = Progress()
    if not sys.stderr.isatty():
        yield shown
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Live

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Live(*columns, console=console(stderr=True), transient=True) as live:
        shown._live = live
        yield shown

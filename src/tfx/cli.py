"""The ``tfx`` command: a group that loads its subcommands on use."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import click

from . import __version__
from .endings import Terminated, raised_signals
from .errors import DataError, TfxError
from .extras import optional_imports
from .streams import drop_stdout, open_closed_streams, write_every_name, writing_problem

# name -> "module:attribute"; loaded on use, so `tfx --help` needs neither torch nor onnx.
COMMANDS = {
    "export": "tfx.export.cli:export",
    "build": "tfx.export.cli:build",
    "quantize": "tfx.quantize.cli:quantize",
    "tune": "tfx.runtime.tuning.cli:tune",
    "predict": "tfx.runtime.cli:predict",
    "generate": "tfx.runtime.generation.cli:generate",
    "transcribe": "tfx.runtime.speech.cli:transcribe",
    "evaluate": "tfx.runtime.accuracy.cli:evaluate",
    "bench": "tfx.bench.cli:bench",
    "profile": "tfx.bench.profile_cli:profile",
    "inspect": "tfx.runtime.cli:inspect",
    "check": "tfx.runtime.cli:check",
    "doctor": "tfx.runtime.cli:doctor",
}

# The one-line help of each, so that listing them imports none of them; a test compares.
SUMMARIES = {
    "export": "Export a PyTorch Transformer to a portable, fused ONNX bundle.",
    "build": "Build a TensorRT engine from a bundle, for named GPUs.",
    "quantize": "Write a bundle of lower precision, with calibration and proof.",
    "tune": "Find the fastest way to run a bundle here that is still right.",
    "predict": "Run a bundle on text, JSONL, npz or WAV files.",
    "generate": "Let a prompt go on, with a bundle that has a cache.",
    "transcribe": "Write down what is said in WAV files: Whisper, or CTC.",
    "evaluate": "Measure a bundle's accuracy on labelled data, or beside another.",
    "bench": "Measure a family of bundles on every backend that works here.",
    "profile": "Show where a bundle's time goes: by operator and by layer.",
    "inspect": "Show a bundle: signature, graph, proof, files.",
    "check": "Check a bundle again: digests, and parity with PyTorch.",
    "doctor": "Show backends, devices and versions, and what is missing.",
}


class Root(click.Group):
    """Loads subcommands lazily and shows our errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; one that does not exist may be a slip for another."""
        from difflib import get_close_matches  # 3 ms, which no other call needs

        name = args[0]
        if name not in COMMANDS and (near := get_close_matches(name, COMMANDS)):
            ctx.fail(f"No such command '{name}'. Did you mean: {', '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from ``SUMMARIES``, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as a program, whatever the streams are that it was given."""
        try:
            open_closed_streams()
            write_every_name()
            return super().main(*args, **extra)
        except OSError as error:
            if (problem := writing_problem(error)) is None:
                raise
            _tell(problem)
        except DataError as error:
            _tell(error)
        sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; our own errors become one message, a hint and exit code 1."""
        try:
            with raised_signals(), optional_imports():
                return super().invoke(ctx)
        except Terminated as error:
            click.echo(f"ended by {error.signal.name}", err=True)
            ctx.exit(128 + error.signal)  # what a shell gives for it
        except TfxError as error:
            if ctx.params.get("verbose"):
                logging.getLogger("tfx").exception("where it was raised:")
            _tell(error)
            ctx.exit(1)
        except BrokenPipeError:
            drop_stdout()  # its reader went away (`| head`)
            ctx.exit(1)


def _tell(error: TfxError) -> None:
    click.echo(f"error: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="tfx")
@click.option("-v", "--verbose", count=True, help="Show logs; twice for those of the libraries.")
def main(verbose: int) -> None:
    """Export, run and measure PyTorch Transformers."""
    logging.basicConfig(
        stream=sys.stderr,
        format="%(levelname)s %(name)s: %(message)s",
        level=logging.INFO if verbose > 1 else logging.ERROR,
        force=True,
    )
    logging.getLogger("tfx").setLevel(logging.INFO if verbose else logging.WARNING)

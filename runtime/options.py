"""Options of the commands that run a bundle, named as the arguments of ``open_session``."""

from __future__ import annotations

import click

from .backend import PRECISIONS

BACKEND = click.option(
    "--backend",
    default="",
    help="What to run it on, or auto: what tfx tune chose.  [default: the first there is]",
)
DEVICE = click.option(
    "--device", default="", help="cpu, or cuda:0 for a GPU.  [default: what the backend is for]"
)
THREADS = click.option(
    "--threads", type=int, help="CPU threads; default: all this process may use."
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    callback=lambda context, parameter, value: value or "",
    help="Type of float matrix products; default: the bundle's own.",
)
TRUST = click.option(
    "--trust", is_flag=True, help="Let the factory's file or a foreign engine run."
)

"""``tfx predict``, ``inspect``, ``check``, ``doctor``: arguments in, one call, its report out."""

from __future__ import annotations

from pathlib import Path

import click

from tfx.codec import encode
from tfx.console import FOLDER, chosen_bundle, console, emit_json, json_option
from tfx.errors import ParityError


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--graph/--no-graph", default=True, help="Also read the graph.  [default: yes]")
@json_option
def inspect(bundle: Path | None, graph: bool, as_json: bool) -> None:
    """Show a bundle: signature, graph, proof, files."""
    from .inspection import graph_facts, show_bundle, show_graph

    opened = chosen_bundle(bundle)
    facts = graph_facts(opened) if graph else None
    if as_json:
        document = {"bundle": str(opened.path), "digest": opened.digest}
        document |= opened.manifest.to_dict()
        emit_json(document | ({"graph": facts} if facts else {}))
        return
    out = console()
    show_bundle(out, opened)
    if facts:
        show_graph(out, facts)
    out.print("  files")
    for entry in opened.manifest.files:
        out.print(f"    {entry.sha256[:12]}  {entry.size_bytes:>12,} bytes  {entry.path}")


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--backend", default="auto", help="What to run it on; default: the first there is.")
@click.option("--threads", type=int, help="CPU threads; default: all this process may use.")
@click.option("--trust", is_flag=True, help="Let the factory's Python file run.")
@json_option
def check(
    bundle: Path | None, backend: str, threads: int | None, trust: bool, as_json: bool
) -> None:
    """Check a bundle again: digests, and parity with PyTorch.

    The bundle carries feeds and what PyTorch gave for them; they are run again on the backend.
    With --backend torch the source is loaded again and must still give the same.
    """
    from .inspection import show_parity
    from .proof import check_bundle

    opened = chosen_bundle(bundle, verify=True)
    report = check_bundle(opened, backend=backend, threads=threads, trust=trust)
    if as_json:
        emit_json(
            {"bundle": str(opened.path), "digest": opened.digest, "passed": report.passed}
            | encode(report)
        )
    else:
        out = console()
        files = len(opened.manifest.files)
        out.print(f"{opened.path}: sha256 of {files} files is right", markup=False)
        show_parity(out, report)
    if not report.passed:
        raise ParityError(f"{opened.path} differs from PyTorch by more than its tolerance")

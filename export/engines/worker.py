"""The process an engine is built in: it may crash, be stopped, or print, and harm nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import tfx.errors
from tfx.bundle import Bundle, open_bundle
from tfx.chatter import quiet
from tfx.codec import decode, encode
from tfx.errors import BackendError, TfxError
from tfx.recipe import EngineBuild, EngineRecipe

from .engine import build_engine

# The least progress worth telling: a build takes hundreds of steps in a second.
STEP = 0.01


def build_apart(
    bundle: Bundle,
    recipe: EngineRecipe,
    plan: Path,
    *,
    timing_cache: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> EngineBuild:
    """Build an engine in a child process, which ends with this call, however that ends.

    The library ends a process that gives it certain graphs, and does not heed Ctrl-C.

    Args:
        bundle: With an ONNX graph.
        recipe: Library, GPUs, profiles, flags.
        plan: File to write the serialized engine to.
        timing_cache: File to read, where there is one, and to write; None for none.
        on_progress: Called with the share done, 0 to 1.

    Raises:
        TfxError: As by ``build_engine``.
        BackendError: If the process ends without an answer.
    """
    job = {
        "bundle": str(bundle.path.resolve()),
        "recipe": encode(recipe),
        "plan": str(plan.resolve()),
        "timing_cache": str(timing_cache.resolve()) if timing_cache else None,
    }
    with tempfile.TemporaryFile() as said:
        # -P: a numpy.py in the current folder must not stand in for the real one.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tfx.export.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        try:
            for answer in _ask(process, job):
                if "share" in answer:
                    on_progress(answer["share"])
                elif "ok" in answer:
                    return decode(EngineBuild, answer["ok"])
                else:
                    # Only our own kinds are sent, by their name.
                    kind: type[TfxError] = getattr(tfx.errors, answer["kind"])
                    raise kind(answer["error"], hint=answer["hint"])
            code = process.wait()
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines()
            ended = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise BackendError(
                f"{recipe.target} ended its process while it built {bundle.name}: "
                + (f"{ended}, {words[-1]}" if words else ended),
                hint="Run it with -vv, and report the graph to the library's makers.",
            )
        finally:
            process.kill()  # what it has written lies in a folder that is not a bundle yet
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _ask(process: subprocess.Popen[str], job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once; its output says why
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        yield json.loads(line)


def main() -> None:
    """Read one job from stdin, build it, tell progress and the end on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # Answers have a descriptor of their own: what the library prints must not mix with them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    try:
        _tell(answers, {"ok": encode(_build(job, answers))})
    except TfxError as error:
        said = {"kind": type(error).__name__, "error": str(error), "hint": error.hint}
        _tell(answers, said)


def _build(job: dict[str, Any], answers: TextIO) -> EngineBuild:
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        if share - told >= STEP:
            told = share
            _tell(answers, {"share": share})  # a parent that is gone breaks the pipe, and the build

    cache = None if job["timing_cache"] is None else Path(job["timing_cache"])
    times = None if cache is None else cache.read_bytes() if cache.is_file() else b""
    with quiet():
        engine = build_engine(
            open_bundle(job["bundle"], verify=False),
            decode(EngineRecipe, job["recipe"]),
            timing_cache=times,
            on_progress=tell,
        )
    Path(job["plan"]).write_bytes(engine.plan)
    if cache is not None:
        aside = cache.with_name(f"{cache.name}.{os.getpid()}")
        aside.write_bytes(engine.timing_cache)
        os.replace(aside, cache)
    return engine.build


def _tell(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()

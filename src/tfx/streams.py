"""stdin, stdout and stderr of a command: one may be closed, and the disk behind one may be full."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from pathlib import Path

from .errors import DataError, TfxError

# Name of an error handler for what UTF-8 has no bytes for.
AS_THEY_ARE = "tfx-as-they-are"


def open_closed_streams() -> None:
    """Give a process the streams its parent closed: nothing to read, nowhere to complain to.

    Without them the next files to be opened would get their descriptors.

    Raises:
        DataError: If stdout is closed: the result would be lost.
    """
    nothing = Path(os.devnull)
    if sys.stdin is None:
        sys.stdin = nothing.open(encoding="utf-8")
    if lost := sys.stdout is None:
        sys.stdout = nothing.open("w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = nothing.open("w", encoding="utf-8")
    if lost:
        raise DataError(
            "stdout is closed, and the result would be lost",
            hint="Lead it to a file, or to /dev/null.",
        )


def write_every_name() -> None:
    """Write UTF-8 whatever the locale is, and a name's bytes that are no text as they are.

    JSON is UTF-8 anyway; who wants another encoding says so with ``PYTHONIOENCODING``.
    """
    codecs.register_error(AS_THEY_ARE, _as_they_are)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding="utf-8", errors=AS_THEY_ARE)


def _as_they_are(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes that stood for no letters when they were read; of other letters the number."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


def drop_stdout() -> None:
    """Throw away what stdout still holds: Python would complain when it flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def writing_problem(error: OSError) -> TfxError | None:
    """What to tell where ``error`` says that stdout or a disk takes no more; None otherwise."""
    with contextlib.suppress(io.UnsupportedOperation):  # stdout is no file
        stdout = sys.stdout.fileno()
        try:
            os.write(stdout, b"\n")  # no error tells of which descriptor it speaks
        except OSError as again:
            drop_stdout()
            return DataError(f"cannot write to stdout: {again.strerror}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        at = f": {error.filename}" if error.filename else ""
        return DataError(
            f"no space left on a disk{at}",
            hint="Free disk space, or name another folder for temporary files with TMPDIR.",
        )
    return None

"""Sums of a folder's files: written with what is kept, compared when it is read."""

from __future__ import annotations

import contextlib
import json
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from .cpus import usable_cpus
from .untouched import status_of

# Beside the files: the size of each and the CRC-32 of its pieces. A disk's error is found by it in
# a third of the time of SHA-256.
FILE_NAME = "sums.json"

# What ``status_of`` said of all these when they were compared last.
NOTE_NAME = "compared"

# What one thread takes at a time.
PIECE_BYTES = 16 << 20

# What it reads at a time: small enough to stay in a processor's cache.
READ_BYTES = 1 << 20

# More wait for memory.
MOST_THREADS = 4


class Sums:
    """Reads a folder's files from now on, the smallest first, in threads of its own.

    A context manager. Files that were compared and not touched since are not read again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(min(usable_cpus(), MOST_THREADS), "tfx-sums")
        paths = sorted(path for path in folder.iterdir() if path.name != NOTE_NAME)
        self._sizes = {path.name: path.stat().st_size for path in paths if path.name != FILE_NAME}
        self._status = status_of(paths)
        self._pieces: dict[str, list[Future[int]]] = {}
        self._compared = self._was_compared()
        if self._compared:
            return
        for name, size in sorted(self._sizes.items(), key=lambda item: item[1]):
            starts = range(0, size, PIECE_BYTES)
            self._pieces[name] = [self._pool.submit(_crc32, folder / name, at) for at in starts]

    def write(self) -> None:
        """Write them beside the files.

        Raises:
            OSError: If a file cannot be read, or they cannot be written.
        """
        found = {
            name: {"size_bytes": size, "crc32": self._found(name)}
            for name, size in self._sizes.items()
        }
        (self._folder / FILE_NAME).write_text(json.dumps(found))

    def compare(self, *, later: str = "") -> None:
        """Wait for them, and compare them with what was written.

        Args:
            later: Name of a file of which only the size is compared now.

        Raises:
            ValueError: If a file is not as it was, or there are others.
            OSError: If a file cannot be read.
        """
        if self._compared:
            return
        path = self._folder / FILE_NAME
        written = json.loads(path.read_bytes()) if path.exists() else {}
        sizes = {name: sums["size_bytes"] for name, sums in written.items()}
        if sizes != self._sizes or any(
            written[name]["crc32"] != self._found(name) for name in sizes if name != later
        ):
            raise ValueError("its files are not as they were written")
        if not later:
            self._note()

    def _was_compared(self) -> bool:
        with contextlib.suppress(OSError, ValueError):  # there is none, or none that can be read
            return self._status != "" and (self._folder / NOTE_NAME).read_text() == self._status
        return False

    def _note(self) -> None:
        """Note that they were compared; one that is cut off is none."""
        if not self._status:
            return
        path = self._folder / NOTE_NAME
        with contextlib.suppress(OSError):  # root filled the cache, or the disk is full
            path.touch(mode=0o600)
            path.write_text(self._status)

    def _found(self, name: str) -> list[int]:
        return [piece.result() for piece in self._pieces[name]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _crc32(path: Path, start: int) -> int:
    """Of one piece of a file."""
    found, left = 0, PIECE_BYTES
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        read = memoryview(bytearray(READ_BYTES))
        while left and (count := stream.readinto(read[:left])):
            found = zlib.crc32(read[:count], found)
            left -= count
    return found

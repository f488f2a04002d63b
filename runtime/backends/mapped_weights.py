"""Pages of a bundle's files that a library has mapped and copied: given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

# The process's mappings, and the same with how much of each is in memory, which takes longer.
PLACES, MAPPINGS = Path("/proc/self/maps"), Path("/proc/self/smaps")
# Of ``madvise``: the process gives the pages back, and reads them from the file when it asks again.
DONT_NEED = 4

# A mapping's first line: its addresses, then access, offset, device and inode, and the file.
HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s*(.*)")

# Sizes of what has become the process's own, by writing to it.
OWN = ("Anonymous:", "Swap:")

# Those of smaller files are not worth the milliseconds that it takes to find them.
LEAST_BYTES = 100_000_000


_lock = threading.Lock()


def _unlock() -> None:
    global _lock  # the parent's may be held by a thread that is not here
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_unlock)


@contextlib.contextmanager
def one_load_at_a_time(folder: Path) -> Iterator[None]:
    """Load a bundle with large files alone in this process; others at any time.

    ``give_back_pages`` finds what its own load has mapped by what was not there before. Another
    load could map the same files meanwhile, and unmap them between the look and ``madvise``: the
    addresses might be anybody's memory by then, and its content would be gone.

    Args:
        folder: Of a bundle.
    """
    try:
        large = bool(_large_files(folder))
    except OSError:  # it was removed: loading says so
        large = False
    with _lock if large else contextlib.nullcontext():
        yield


def mapped_places(folder: Path) -> frozenset[int]:
    """Where large files of a folder are mapped already: the first address of each mapping."""
    try:
        large = _large_files(folder)
        lines = PLACES.read_text().splitlines() if large else []
    except OSError:  # it was removed, or the system hides this
        return frozenset()
    heads = [head for line in lines if (head := HEAD.match(line))]
    return frozenset(
        int(start, 16) for start, _, name in map(re.Match.groups, heads) if name in large
    )


def give_back_pages(folder: Path, but: Collection[int] = ()) -> int:
    """Give back the pages of mapped large files of a folder that nobody has written to.

    OpenVINO reads the weights of a graph, or of a compiled model, from the mapped file and packs
    most of them into memory of its own: what it read stays resident beside that, and is needed
    again at most for a first run. What is read later comes from the system's cache of the file.

    Args:
        folder: Of a bundle, or of an entry of the cache.
        but: First addresses of mappings that stay as they are: those of others, who may run with
            them, or unmap them meanwhile.

    Returns:
        Bytes of the mappings; 0 where the system is not Linux, or does not say what is mapped.
    """
    try:
        large = _large_files(folder)
        mappings = MAPPINGS.read_text() if large else ""
    except OSError as error:  # another process cleans the cache, or the system hides this
        log.info("pages are not given back: %s: %s", folder, error)
        return 0
    if not mappings:
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = 0
    for start, end in _unwritten(mappings, large):
        if start not in but and madvise(start, end - start, DONT_NEED) == 0:
            size += end - start
    return size


def _large_files(folder: Path) -> set[str]:
    """Names of the files worth it, as the system has them; none where it is not Linux."""
    if not sys.platform.startswith("linux"):
        return set()
    return {str(path.resolve()) for path in folder.iterdir() if path.stat().st_size >= LEAST_BYTES}


def _unwritten(mappings: str, files: Collection[str]) -> list[tuple[int, int]]:
    """Addresses of the mappings of files, in a list as Linux writes it, that are as the files."""
    found: dict[tuple[int, int], bool] = {}
    place: tuple[int, int] | None = None
    for line in mappings.splitlines():
        if head := HEAD.match(line):
            start, end, name = head.groups()
            place = (int(start, 16), int(end, 16)) if name in files else None
        elif place and line.startswith(OWN):
            found[place] = found.get(place, True) and line.split()[1] == "0"
    return [place for place, same in found.items() if same]

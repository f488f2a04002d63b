"""Pages of a bundle's files that a library has mapped and copied: given back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

MAPS = Path("/proc/self/maps")
# Of ``madvise``: the process gives the pages back, and reads them from the file when it asks again.
DONT_NEED = 4


def give_back_pages(folder: Path) -> int:
    """Give back the pages of mapped files of a folder that cannot have been written to.

    OpenVINO maps the weights of a graph, and packs most of them into memory of its own: what it
    read stays resident beside that, and is needed again at most for a first run. Whatever is read
    later comes from the system's cache of the file.

    Args:
        folder: Of a bundle.

    Returns:
        Bytes of the mappings; 0 where the system is not Linux.
    """
    if not sys.platform.startswith("linux"):
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = 0
    for start, end in _mappings(MAPS.read_text(), folder.resolve()):
        if madvise(start, end - start, DONT_NEED) == 0:
            size += end - start
    return size


def _mappings(maps: str, folder: Path) -> list[tuple[int, int]]:
    """Addresses of the read-only mappings of files of a folder, in a list as Linux writes it."""
    found = []
    for line in maps.splitlines():
        addresses, access, _, _, _, *name = line.split(None, 5)
        if access.startswith("r--") and name and Path(name[0]).parent == folder:
            start, _, end = addresses.partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found

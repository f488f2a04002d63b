"""Files whose digests were compared on this machine, and that nobody has touched since.

A service is started many times on the same bundle, and 92 MB take 70 ms of a processor each time.
So what was compared is noted in the user's cache, with what the system says of each file: its size,
its place on the disk, and when its content and its status changed. Whoever writes to a file changes
these, and none but root can put the last one back. A disk that gives back other bytes than it was
given, by itself, is not noticed so: ``tfx check`` reads every byte.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from . import cache

# A clock has ticks: a file written to in the tick that it was looked at has the same times after.
SETTLED_NS = 2_000_000_000

# A note takes some hundreds of bytes.
MOST_BYTES = 1_000_000


def status_of(files: Iterable[Path]) -> str:
    """What changes when one of the files is touched; "" where the system does not tell.

    Args:
        files: In any order that is the same each time.

    Raises:
        OSError: If there is no such file.
    """
    if not hasattr(os, "geteuid"):  # on Windows st_ctime is when a file was made
        return ""
    lines = []
    for file in files:
        status = file.lstat()
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED_NS:
            return ""
        facts = (status.st_dev, status.st_ino, status.st_size)
        lines.append((*facts, status.st_mtime_ns, status.st_ctime_ns))
    return "\n".join(" ".join(map(str, line)) for line in lines)


class Note:
    """What is noted of a bundle that was compared; none where the cache is turned off."""

    def __init__(self, folder: Path, manifest: bytes) -> None:
        """Say which bundle is meant.

        Args:
            folder: Its folder, resolved.
            manifest: What ``tfx.json`` holds: the digests that its files were compared with.

        Raises:
            BackendError: If the environment names no size for the cache.
        """
        key = hashlib.sha256(os.fsencode(folder) + b"\0" + manifest).hexdigest()[:24]
        self._path = cache.cache_folder() / "compared" / key if cache.limit_mb() else None

    def says(self, status: str) -> bool:
        """Whether the files were compared when they were as they are now.

        Args:
            status: From ``status_of``.
        """
        if self._path is None or not status:
            return False
        return cache.reopened(self._path, Path.read_text) == status

    def write(self, status: str) -> None:
        """Note that the files are what the manifest says.

        Args:
            status: From ``status_of``, before they were read.
        """
        if self._path is not None and status:
            cache.keep(self._path, lambda path: path.write_text(status), most_bytes=MOST_BYTES)

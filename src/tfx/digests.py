"""Digests of files, read in pieces."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Read at a time. Between two pieces a thread waits for Python's lock, up to 5 ms each time where
# another thread imports modules.
PIECE_BYTES = 16 << 20


def sha256_of(path: Path) -> str:
    """Hex digest of a file.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        size = path.stat().st_size
        piece = memoryview(bytearray(max(1, min(size, PIECE_BYTES))))
        while count := stream.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()

"""A bundle's digests, read while something else is done that does not read the bundle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.digests import sha256_of
from tfx.errors import TfxError

from . import cache
from .untouched import status_of

if TYPE_CHECKING:
    from tfx.bundle import Bundle

# As ``tfx.manifest`` calls it; that module takes as long to import as the digests to read.
MANIFEST = "tfx.json"

# Of all notes; one takes some hundreds.
MOST_NOTES_BYTES = 1_000_000


class Verification(threading.Thread):
    """Compares the sha256 of every file with the manifest; reads them in a thread of its own.

    92 MB take 70 ms, in which NumPy and a backend's library can be imported: Python lets go of its
    lock meanwhile. Files that were compared before and not touched since are not read again. Which
    files there are is read from the manifest without checking it; what is not read here, for
    whatever reason, is read by ``finish``.
    """

    def __init__(self, folder: Path) -> None:
        """Begin.

        Args:
            folder: Of a bundle, or what may be one.
        """
        super().__init__(name="tfx-verification", daemon=True)
        self._folder = folder
        self._found: dict[str, str] = {}
        self._note: Note | None = None
        self._status = ""
        with contextlib.suppress(RuntimeError):  # the system gives no more threads
            self.start()

    def run(self) -> None:
        """Read what the manifest names, until something is not as it should be."""
        try:
            root = self._folder.resolve()
            manifest = (root / MANIFEST).read_bytes()
            entries = json.loads(manifest)["files"]
            paths = [root / entry["path"] for entry in entries]
            for path, entry in zip(paths, entries, strict=True):
                # A pipe would be waited for, and a link lead anywhere.
                if path.resolve() != path or not path.is_file():
                    return
                if path.stat().st_size != entry["size_bytes"]:
                    return
            status, note = status_of(paths), Note(root, manifest)
            if note.says(status):
                self._found = {entry["path"]: entry["sha256"] for entry in entries}
                return
            for path, entry in zip(paths, entries, strict=True):
                self._found[entry["path"]] = sha256_of(path)
            self._note, self._status = note, status
        except (OSError, ValueError, LookupError, TypeError, TfxError):
            return  # opening the bundle says what is wrong with it

    def finish(self, bundle: Bundle) -> None:
        """Wait for the end, and compare; nothing of the bundle may be loaded before.

        Args:
            bundle: The opened bundle of the folder: its manifest and sizes were right.

        Raises:
            BundleError: If a file is damaged.
        """
        if self.ident is not None:
            self.join()
        bundle.verify(self._found)
        if self._note is not None:
            self._note.write(self._status)


def verified(bundle: Bundle) -> Bundle:
    """The same bundle, whose files are what its manifest says.

    Raises:
        BundleError: If a file is damaged.
    """
    Verification(bundle.path).finish(bundle)
    return bundle


class Note:
    """Says in the user's cache that a bundle was compared; nothing where that is turned off."""

    def __init__(self, folder: Path, manifest: bytes) -> None:
        """Say which bundle is meant.

        Args:
            folder: Its folder, resolved.
            manifest: What ``tfx.json`` holds: the digests that its files are compared with.

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
            cache.keep(
                self._path, lambda path: path.write_text(status), most_bytes=MOST_NOTES_BYTES
            )

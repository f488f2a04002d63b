"""A bundle's digests, read while something else is done that does not read the bundle."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.digests import sha256_of

if TYPE_CHECKING:
    from tfx.bundle import Bundle

# As ``tfx.manifest`` calls it; that module takes as long to import as the digests to read.
MANIFEST = "tfx.json"


class Verification(threading.Thread):
    """Compares the sha256 of every file with the manifest; reads them in a thread of its own.

    92 MB take 70 ms, in which NumPy and a backend's library can be imported: Python lets go of its
    lock meanwhile. Which files there are is read from the manifest without checking it; what is not
    read here, for whatever reason, is read by ``finish``.
    """

    def __init__(self, folder: Path) -> None:
        """Begin.

        Args:
            folder: Of a bundle, or what may be one.
        """
        super().__init__(name="tfx-verification", daemon=True)
        self._folder = folder
        self._found: dict[str, str] = {}
        self.start()

    def run(self) -> None:
        """Read what the manifest names, until something is not as it should be."""
        try:
            document = json.loads((self._folder / MANIFEST).read_bytes())
            root = self._folder.resolve()
            for entry in document["files"]:
                path = root / entry["path"]
                # A pipe would be waited for, and a link lead anywhere.
                if path.resolve() != path or not path.is_file():
                    return
                if path.stat().st_size != entry["size_bytes"]:
                    return
                self._found[entry["path"]] = sha256_of(path)
        except (OSError, ValueError, LookupError, TypeError):
            return  # opening the bundle says what is wrong with it

    def finish(self, bundle: Bundle) -> None:
        """Wait for the end, and compare; nothing of the bundle may be loaded before.

        Args:
            bundle: The opened bundle of the folder: its manifest and sizes were right.

        Raises:
            BundleError: If a file is damaged.
        """
        self.join()
        bundle.verify(self._found)

"""A bundle's digests, checked while something else is done that does not read the bundle."""

from __future__ import annotations

import threading

from tfx.bundle import Bundle


class Verification(threading.Thread):
    """Compares the sha256 of every file with the manifest, in a thread of its own.

    Reading 92 MB and their sha256 take 70 ms, in which a backend's library can be imported:
    Python lets go of its lock for both.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Begin.

        Args:
            bundle: What to check.
        """
        super().__init__(name="tfx-verification", daemon=True)
        self._bundle = bundle
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Check, and keep what is wrong for ``finish``."""
        try:
            self._bundle.verify()
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            self._error = error

    def finish(self) -> None:
        """Wait for the end; nothing of the bundle may be loaded before.

        Raises:
            BundleError: If a file is damaged.
        """
        self.join()
        if self._error is not None:
            raise self._error

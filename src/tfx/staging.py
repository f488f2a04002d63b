"""What is written aside, to be moved in place when it is whole; and what killed processes left."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

# Nothing with this prefix looks like a bundle, so that a killed process leaves none.
STAGING_PREFIX = ".tfx-partial-"


def staging_path(target: Path) -> Path:
    """A name beside ``target`` that nothing has, for what will be moved to ``target``.

    What is made under it gets the mode of any other output of a command; ``tempfile`` would
    keep it from other users, and the umask cannot be read without setting it.
    """
    return target.parent / f"{STAGING_PREFIX}{secrets.token_hex(8)}"


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, locked as long as the block runs.

    The lock goes with the process, however that ends: by it the next one knows what was left
    behind, and removes it.

    Yields:
        The folder; what is still there after the block is removed.

    Raises:
        OSError: If it cannot be made.
    """
    remove_abandoned(target.parent)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        if folder.exists():
            remove_folder(folder)
        if lock is not None:
            os.close(lock)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that can be done."""
    import shutil  # 6 ms, and no part of running a bundle

    shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders that killed processes were writing in ``parent``, and say so.

    A whole bundle among them is only named: it may be the one that was to be replaced.
    """
    from .manifest import FILE_NAME

    for folder in sorted(parent.glob(f"{STAGING_PREFIX}*")):
        if not folder.is_dir() or (lock := _lock(folder, wait=False)) is None:
            continue
        try:
            if (folder / FILE_NAME).exists():
                log.warning(
                    "%s was left by a command that was killed; it may hold a whole bundle: "
                    "rename it to use it, or delete it",
                    folder,
                )
            else:
                remove_folder(folder)
                log.warning("removed %s, left by a command that was killed", folder)
        finally:
            os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    while True:
        folder = staging_path(target)
        folder.mkdir()
        lock = _lock(folder, wait=True)
        if folder.exists():
            return folder, lock
        # Taken for abandoned by another process before we had locked it.
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None where it is held, or there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        return None
    return lock

"""What engines made of a bundle for this machine, kept between processes: bounded, never needed.

The folder is ``$XDG_CACHE_HOME/tfx`` (``~/.cache/tfx``); it may be deleted at any time. Once it
holds more than ``$TFX_CACHE_MB`` (4000, in units of 10^6 bytes), what was not used for longest
goes first. ``TFX_CACHE_MB=0`` turns the cache off.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tfx import __version__
from tfx.errors import BackendError

from .cpus import read_cpu
from .sums import Sums

if TYPE_CHECKING:
    from tfx.bundle import Bundle

log = logging.getLogger(__name__)

LIMIT_VARIABLE = "TFX_CACHE_MB"
DEFAULT_LIMIT_MB = 4000

# Something under its first name for longer than this was left by a process that was killed.
ABANDONED_S = 24 * 3600

OTHERS_WRITE = 0o022

# Beside the user: root, who may fill a cache for many.
TRUSTED_USER = 0

T = TypeVar("T")


class Unfit(Exception):
    """What was made for the cache is not to be kept; says why."""


def cache_folder() -> Path:
    """Where everything is kept; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: what is not absolute is as if it were not set.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "tfx"


def limit_mb() -> int:
    """How much may be kept, in units of 10^6 bytes; 0 for nothing.

    Raises:
        BackendError: If the environment says something else than a number.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_MB)
    if not text.isdecimal():
        raise BackendError(
            f"{LIMIT_VARIABLE} is {text!r}, expected a number of megabytes",
            hint="Set it to 0 to keep nothing, or unset it.",
        )
    return int(text)


def make_folder(folder: Path) -> None:
    """Make a folder of the cache, and what is missing above it, that no other user may write to.

    Raises:
        OSError: If it cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)  # mkdir(parents=True) gives its mode to the last one only
        folder.mkdir(mode=0o700, exist_ok=True)


def entry_for(bundle: Bundle, engine: str, *conditions: str) -> Path | None:
    """The file that holds what an engine made of a bundle on a CPU like this one.

    Args:
        bundle: By its digest.
        engine: Its name and version; in the file's name, for whoever looks into the folder.
        conditions: Everything else that it was made for, such as the precision.

    Returns:
        None where nothing is to be kept.
    """
    if not limit_mb():
        return None
    cpu = read_cpu()
    parts = (bundle.digest, engine, __version__, cpu.model, *sorted(cpu.flags), *conditions)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return cache_folder() / "compiled" / f"{engine.replace(' ', '-')}-{key}"


def found(entry: Path) -> bool:
    """Whether an entry is there as it was kept; marks it as used now."""
    return reopened(entry, lambda path: True) is True


def reopened(entry: Path, read: Callable[[Path], T], *, mapped: str = "") -> T | None:
    """What an engine reads of an entry; None if there is none as it was kept. Marks it as used now.

    What an engine maps it runs unchecked: what another user may write is not taken, and a folder
    whose files changed, or that the engine refuses, is removed.

    Args:
        entry: From ``entry_for``.
        read: Reads it. Nothing of what it gives is run before this returns.
        mapped: Name of a file that ``read`` maps and does not look into, such as one of weights:
            it is checked meanwhile.
    """
    try:
        os.utime(entry)
    except FileNotFoundError:
        return None
    except OSError:  # of root, or on a file system that is read only
        if not os.access(entry, os.R_OK):
            return None
    try:
        if path := _writable_by_others(entry):
            log.warning("not used: %s: another user may write to %s", entry, path)
            return None
        if not entry.is_dir():
            return read(entry)
        with Sums(entry) as sums:
            sums.compare(later=mapped)
            value = read(entry)
            sums.compare()
        return value
    except FileNotFoundError:  # another process cleans
        return None
    except Exception as error:  # noqa: BLE001  whatever is wrong with it, it can be made again
        log.warning("not used: %s: %s", entry, error)
        discard(entry)
        return None


def _folders(entry: Path) -> tuple[Path, Path]:
    """The cache's folder, and that of the entry: who may write to either may exchange entries."""
    return entry.parent.parent, entry.parent


def _writable_by_others(entry: Path) -> Path | None:
    """What another user may write to: the folders of an entry, the entry, or what is in it.

    Raises:
        OSError: If it cannot be looked at.
    """
    if not hasattr(os, "geteuid"):  # not on Windows
        return None
    inside = [*entry.iterdir()] if entry.is_dir() else []
    for path in (*_folders(entry), entry, *inside):
        status = path.stat()
        if status.st_uid not in (TRUSTED_USER, os.geteuid()) or status.st_mode & OTHERS_WRITE:
            return path
    return None


def discard(entry: Path) -> None:
    """Remove an entry that is no good, so that another is made when it is asked for again."""
    _remove(entry)
    _remove(entry.with_name(f".{entry.name}.tried"))


def wanted(entry: Path) -> bool:
    """Whether an entry is asked for a second time within a day, and nobody has tried to make it.

    For what is large, or slow to make. Of several processes that ask at once one is told so.
    """
    asked = entry.with_name(f".{entry.name}.asked")
    tried = entry.with_name(f".{entry.name}.tried")
    try:
        make_folder(entry.parent)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - tried.stat().st_mtime < ABANDONED_S:
                return False
        try:
            os.replace(asked, tried)
            os.utime(tried)
            return True
        except FileNotFoundError:
            asked.touch(mode=0o600)
    except OSError as error:  # the disk may be full or read only
        log.info("not kept: %s: %s", entry, error)
    return False


def keep(entry: Path, write: Callable[[Path], object], *, most_bytes: int | None = None) -> bool:
    """Make an entry, whole or not at all, and remove what is too much.

    Two processes that make the same one at once both succeed: a file is the last one's, a folder
    the first one's.

    Args:
        entry: From ``entry_for``.
        write: Writes the file it is given, or a folder; raises ``Unfit`` if that is not to be kept.
        most_bytes: Of everything beside the entry; None for the limit of the whole cache.

    Returns:
        Whether it was kept. That it was not is no error: the disk may be full or read only.
    """
    staged = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
    try:
        make_folder(entry.parent)
        write(staged)
        if staged.is_dir():
            with Sums(staged) as sums:
                sums.write()
        for path in (staged, *(staged.iterdir() if staged.is_dir() else ())):
            path.chmod(path.stat().st_mode & ~OTHERS_WRITE)  # where the umask is 002
        size = _size_bytes(staged)
        if size > limit_mb() * 1e6:
            log.info("not kept: %s has %d bytes", entry, size)
            return False
        _replace(staged, entry)
    except (OSError, Unfit) as error:
        log.info("not kept: %s: %s", entry, error)
        return False
    finally:
        _remove(staged)
    clean(entry.parent, limit_mb() * 1_000_000 if most_bytes is None else most_bytes)
    return True


def _replace(staged: Path, entry: Path) -> None:
    """Give an entry its name; a folder that another process made meanwhile stays.

    Raises:
        OSError: If it cannot be done.
    """
    try:
        os.replace(staged, entry)
    except OSError:
        # No system replaces a folder that is not empty.
        if not (staged.is_dir() and entry.is_dir()) or _writable_by_others(entry):
            raise
        log.info("another process kept it: %s", entry)


def clean(folder: Path, limit_bytes: int) -> None:
    """Remove the entries used longest ago until those left have ``limit_bytes`` at most."""
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process cleans too
            status = path.stat()
            if not path.name.startswith("."):
                entries.append((status.st_mtime, _size_bytes(path), path))
            elif time.time() - status.st_mtime > ABANDONED_S:
                _remove(path)
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit_bytes:
            return
        if _remove(path):
            total -= size
            log.info("removed: %s", path)


def _size_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.iterdir())


def _remove(path: Path) -> bool:
    """Remove a file, or a folder of files; whether it is gone."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            for one in path.iterdir():
                one.unlink(missing_ok=True)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        return True
    return False

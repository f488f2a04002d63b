"""Bundle: a directory that says everything about the model in it, never edited once written."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .digests import sha256_of as sha256_of
from .errors import BundleError, listing
from .manifest import FILE_NAME, FileEntry, Manifest, Parent
from .staging import STAGING_PREFIX, remove_folder, staging_folder, staging_path


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its files were present and had the right sizes.

    Attributes:
        path: The directory.
        manifest: What ``tfx.json`` says.
        digest: sha256 of ``tfx.json``, which holds the digest of every other file.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The graph's file."""
        return self.path / self.manifest.model

    @property
    def size_bytes(self) -> int:
        """Of all files but ``tfx.json``."""
        return sum(entry.size_bytes for entry in self.manifest.files)

    def as_parent(self) -> Parent:
        """How a child bundle names this one."""
        return Parent(self.name, self.digest)

    def verify(self, found: Mapping[str, str] = MappingProxyType({})) -> None:
        """Compare the sha256 of every file with the manifest.

        Args:
            found: Digests of files that were read already, by path in the bundle.

        Raises:
            BundleError: With one line per file that differs.
        """
        try:
            problems = [
                f"{entry.path}: sha256 is not the one in {FILE_NAME}"
                for entry in self.manifest.files
                # What was read before the bundle was opened may be of the one it replaced.
                if found.get(entry.path) != entry.sha256
                and sha256_of(self.path / entry.path) != entry.sha256
            ]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if problems:
            raise BundleError(
                listing(f"bundle {self.path} is damaged:", problems),
                hint="Make the bundle again or copy it again from where it came.",
            )


def is_bundle(path: Path) -> bool:
    """Whether ``path`` is a directory with a manifest; says nothing of its health."""
    try:
        return (path / FILE_NAME).is_file() and not path.name.startswith(STAGING_PREFIX)
    except OSError:  # a folder we may not look into
        return False


def open_bundle(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Open the bundle at ``path``.

    Args:
        path: The directory.
        verify: Also read every file and compare its sha256. Without it only presence,
            kind and size are checked.

    Raises:
        BundleError: If it is missing, incomplete, damaged, from a newer version, or has a
            file that is a link to somewhere else.
    """
    folder = Path(path)
    try:
        bundle = _read_bundle(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    if verify:
        bundle.verify()
    return bundle


@contextmanager
def create_bundle(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Staging]:
    """Write a bundle aside and move it to ``path`` when the block ends well.

    Whatever happens inside, ``path`` either is untouched or holds a whole bundle: the
    manifest is written last, files are synced to disk, and a rename puts them in place.

    Args:
        path: Where the bundle goes; its parent directories are made.
        force: Replace a bundle that is there already.

    Yields:
        A ``Staging``: write files into its ``path``, then call ``finish`` with the manifest.

    Raises:
        BundleError: If ``path`` is taken, cannot be written, or the disk is full.
    """
    target = Path(path)
    _refuse_taken(target, force)
    try:
        if target.is_symlink():
            target = target.resolve()  # a link keeps leading to the bundle it leads to
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(target) as folder:
            staging = Staging(folder)
            yield staging
            if staging.manifest is None:
                raise AssertionError("create_bundle: finish() was not called")
            _write_synced(folder / FILE_NAME, staging.manifest.to_json().encode())
            manifest, _ = _read_manifest(folder)
            _check_files(folder, manifest)  # what would not open is not put in place
            _refuse_taken(target, force)  # again: another process may have been faster
            _move_into_place(folder, target, force)
    except OSError as error:
        raise _translated(error, target) from error


class Staging:
    """A bundle being written.

    Attributes:
        path: Where files go until the bundle is whole.
        manifest: What ``finish`` was given, with the files' digests; None before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None

    def finish(self, manifest: Manifest) -> None:
        """Record every file's size and digest in ``manifest``; nothing may be written after."""
        entries = []
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            entries.append(
                FileEntry(
                    file.relative_to(self.path).as_posix(), file.stat().st_size, sha256_of(file)
                )
            )
        self.manifest = dataclasses.replace(manifest, files=tuple(entries))

    @property
    def digest(self) -> str:
        """The digest the bundle will have, once finished."""
        assert self.manifest is not None
        return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()


def _read_bundle(folder: Path) -> Bundle:
    if not folder.exists():
        raise BundleError(f"no such bundle: {folder}", hint=_others(folder))
    if folder.resolve().name.startswith(STAGING_PREFIX):
        raise BundleError(
            f"{folder} is not a whole bundle: a command was stopped while it wrote it",
            hint="Delete it and make the bundle again.",
        )
    manifest, digest = _read_manifest(folder)
    _check_files(folder, manifest)
    return Bundle(folder, manifest, digest)


def _others(folder: Path) -> str:
    """A hint: which bundles are where one was looked for in vain."""
    parent = folder.parent
    names = (
        sorted(path.name for path in parent.iterdir() if is_bundle(path)) if parent.is_dir() else []
    )
    if not names:
        return "Make one with tfx export, or name a bundle's folder."
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"Name one that is there: {', '.join(names[:6])}{more}."


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    path = folder / FILE_NAME
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {FILE_NAME}",
            hint="Name a folder that tfx export, quantize or build wrote.",
        )
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is damaged: not UTF-8", hint="Make the bundle again.") from error
    return Manifest.from_json(text, where=str(path)), hashlib.sha256(data).hexdigest()


def _check_files(folder: Path, manifest: Manifest) -> None:
    root = folder.resolve()
    problems = [p for entry in manifest.files if (p := _file_problem(root, entry))]
    # A graph may name a file of weights beside it: one without a digest could be anything.
    listed = {FILE_NAME, *(entry.path for entry in manifest.files)}
    found = (
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        # rglob stays out of a folder that is a link, and a graph would not.
        if path.is_symlink() or not path.is_dir()
    )
    problems += [
        f"{path}: not listed in {FILE_NAME}" for path in sorted(found) if path not in listed
    ]
    if problems:
        raise BundleError(
            listing(f"bundle {folder} is damaged:", problems),
            hint="Make the bundle again or copy it again from where it came.",
        )


def _unreadable(folder: Path, error: OSError) -> BundleError:
    at = f": {error.filename}" if error.filename else ""
    return BundleError(f"cannot read bundle {folder}: {error.strerror}{at}")


def _file_problem(root: Path, entry: FileEntry) -> str:
    path = root / entry.path
    # A link or a `..` hidden behind one: what it leads to is not what was digested.
    if path.resolve() != path:
        return f"{entry.path}: leads outside the bundle"
    if not path.is_file():
        return f"{entry.path}: missing"
    size = path.stat().st_size
    if size != entry.size_bytes:
        return f"{entry.path}: is {size} bytes, expected {entry.size_bytes}"
    return ""


def _refuse_taken(target: Path, force: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if is_bundle(target):
        if not force:
            raise BundleError(
                f"{target} already holds a bundle", hint="Use --force or another -o folder."
            )
    elif not target.is_dir() or any(target.iterdir()):
        raise BundleError(f"{target} exists and is not a bundle", hint="Choose another -o folder.")


def _move_into_place(folder: Path, target: Path, force: bool) -> None:
    if force and is_bundle(target):
        # A directory cannot be replaced in one step: the old one steps aside first, and
        # comes back if the new one cannot take its place.
        aside = staging_path(target)
        os.replace(target, aside)
        try:
            os.replace(folder, target)
        except OSError:
            os.replace(aside, target)
            raise
        remove_folder(aside)
    else:
        # Onto nothing or an empty directory; fails if another process was faster.
        os.replace(folder, target)
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # the rename itself survives a power cut
    finally:
        os.close(parent)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _translated(error: OSError, target: Path) -> BundleError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BundleError(
            f"no space left to write bundle {target}", hint="Free disk space and run it again."
        )
    # filename2: of a rename; mkdir over a file gives EEXIST too.
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and error.filename2 is not None:
        return BundleError(
            f"{target} was written by another process meanwhile",
            hint="Use --force or another -o folder.",
        )
    at = f": {error.filename}" if error.filename else ""
    return BundleError(f"cannot write bundle {target}: {error.strerror or error}{at}")

"""The folder bundles live in: which are there, which is newest, which belong together."""

from __future__ import annotations

import logging
from pathlib import Path

from .bundle import Bundle, is_bundle, open_bundle
from .errors import BundleError

log = logging.getLogger(__name__)


def bundles_in(folder: Path) -> list[Bundle]:
    """Every healthy bundle directly inside ``folder``, oldest first.

    One that does not open is logged and left out: it must not keep others from being used.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_bundle(path):
            continue
        try:
            found.append(open_bundle(path, verify=False))
        except BundleError as error:
            log.warning("left out: %s", error)
    return sorted(found, key=lambda bundle: (bundle.manifest.created, bundle.name))


def newest(folder: Path | None = None) -> Bundle:
    """The bundle made last in the workspace, by default the current folder.

    Raises:
        BundleError: If there is none.
    """
    folder = folder or Path()
    if not (found := bundles_in(folder)):
        raise BundleError(
            f"no bundle in {folder.resolve()}",
            hint="Make one with: tfx export minilm, or name a bundle's folder.",
        )
    return found[-1]


def family_of(bundle: Bundle, folder: Path | None = None) -> list[Bundle]:
    """``bundle`` and its ancestors and descendants in the workspace, oldest first."""
    others = bundles_in(folder or bundle.path.resolve().parent)
    by_digest = {other.digest: other for other in others} | {bundle.digest: bundle}

    def root_of(one: Bundle) -> str:
        digest, seen = one.digest, {one.digest}
        while (parent := one.manifest.parent) and parent.digest not in seen:
            digest = parent.digest  # known even where that bundle is not here any more
            seen.add(digest)
            if digest not in by_digest:
                break
            one = by_digest[digest]
        return digest

    root = root_of(bundle)
    return [one for one in by_digest.values() if root_of(one) == root]

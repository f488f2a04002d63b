"""The encoder that a decoder was exported with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from tfx.bundle import Bundle, open_bundle
from tfx.errors import BundleError
from tfx.signature import Feed

HINT = "Put the encoder that was exported with it beside it, under its name, or export both again."


class Encoder(Protocol):
    """What a decoder needs of its encoder's session.

    Attributes:
        bundle: The encoder.
    """

    bundle: Bundle

    def predict(self, inputs: Feed) -> Mapping[str, np.ndarray]:
        """Outputs by name."""
        ...


def encoder_of(decoder: Bundle, given: str | os.PathLike[str] = "") -> Bundle:
    """The encoder that a decoder belongs to, opened and verified.

    Args:
        decoder: A bundle with ``manifest.encoder``.
        given: Another folder than the one beside it under its name; it may hold what was made
            from that encoder (``tfx quantize``).

    Raises:
        BundleError: If it is not there, damaged, or another one.
    """
    named = decoder.manifest.encoder
    if named is None:
        raise BundleError(
            f"{decoder.path} does not say which encoder it belongs to",
            hint="Export both again: tfx export writes them together.",
        )
    path = Path(given) if given else decoder.path.parent / named.name
    if not path.exists():
        raise BundleError(
            f"{decoder.path} needs its encoder {named.name}: {path} is not there", hint=HINT
        )
    found = open_bundle(path)
    parent = found.manifest.parent
    if named.digest not in (found.digest, parent.digest if parent else ""):
        raise BundleError(
            f"{path} is not the encoder of {decoder.path}: its digest is {found.digest[:12]}, "
            f"expected {named.digest[:12]}",
            hint=HINT,
        )
    return found

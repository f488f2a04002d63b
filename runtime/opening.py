"""``open_session``: reads a bundle's digests while it imports what a session needs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .blas import import_numpy
from .verification import Verification

if TYPE_CHECKING:
    from tfx.bundle import Bundle

    from .session import Session
    from .text.batcher import Batching


def open_session(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    backend: str = "",
    device: str = "",
    threads: int | None = None,
    precision: str = "",
    verify: bool = True,
    trust: bool = False,
    tune: bool | None = None,
    streams: int | None = 1,
    batching: Batching | None = None,
    encoder: str | os.PathLike[str] = "",
) -> Session:
    """Load a bundle on a backend.

    Args:
        bundle: A bundle's folder, or an opened one.
        backend: A name in ``BACKENDS``; "" takes "tensorrt" for an engine, else the first of
            ``GRAPH_BACKENDS`` that this machine has. "auto" takes what ``tfx tune`` found to be
            fastest here: a backend, threads, a precision, and maybe a bundle made from this one.
        device: "cpu" or "cuda:0"; "" for the one that the backend is for: the first GPU for
            those that run there alone, else the CPU.
        threads: CPU threads of one run; None for all this process may use.
        precision: Type of float matrix products: "fp32", "bf16" or "fp16"; "" for what the
            bundle's manifest says.
        verify: Compare the sha256 of every file with the manifest first, unless this user has
            compared them on this machine and nobody has touched them since. To have every byte
            read, give the bundle as ``open_bundle`` opens it.
        trust: Let code that the bundle brings run: a factory's file, as torch reference, or an
            engine that was not built here.
        tune: Whether "auto" may measure for about half a minute where nothing is stored, or not
            for this machine as it is now; None for what ``$TFX_TUNE`` (0 or 1) says.
        streams: Runs of the model at once that share the CPU threads: for throughput, as ``map``
            takes them all. One run alone then has ``threads // streams`` of them. None for as many
            as there are threads, at most ``MOST_STREAMS``, where the backend has streams.
        batching: How ``predict_async`` merges requests; None for the defaults.
        encoder: Of a decoder that generates: the encoder's folder, which may hold what was made
            from its encoder; "" for the one beside it. It runs on the same backend.

    Returns:
        A session, ready to predict.

    Raises:
        BundleError: If the bundle is missing or damaged.
        BackendError: If the backend cannot run here or refuses the model; never another
            backend than asked for.
    """
    started = time.perf_counter()
    verification = None
    # An opened bundle was verified, or not, by whoever opened it; "auto" may choose another one.
    if verify and isinstance(bundle, str | os.PathLike) and backend != "auto":
        verification = Verification(Path(bundle))

    import_numpy()  # the digests are read meanwhile
    from .loading import load_session
    from .open_options import OpenOptions

    options = OpenOptions(
        backend=backend,
        device=device,
        threads=threads,
        precision=precision,
        verify=verify,
        trust=trust,
        tune=tune,
        streams=streams,
        batching=batching,
        encoder=encoder,
    )
    return load_session(bundle, options, verification, started)

"""What ``open_session`` does once NumPy is there: choose a backend, load the bundle on it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

from tfx.bundle import Bundle, open_bundle

from .backend import (
    AUTO,
    GPU_BACKENDS,
    Executable,
    RunOptions,
    best_streams,
    check_streams,
    first_available,
    get_backend,
)
from .backends.mapped_weights import one_load_at_a_time
from .cpus import usable_cpus
from .open_options import OpenOptions
from .session import Session
from .verification import Verification


def load_session(
    bundle: str | os.PathLike[str] | Bundle,
    options: OpenOptions,
    verification: Verification | None,
    started: float,
) -> Session:
    """Load a bundle as ``open_session`` says.

    Args:
        bundle: A bundle's folder, or an opened one, which is not verified again.
        options: What was asked for.
        verification: Of the bundle's files, where it has begun.
        started: When ``open_session`` was called, by ``time.perf_counter``.

    Raises:
        BundleError: If the bundle is missing or damaged.
        BackendError: If the backend cannot run here or refuses the model.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, verify=False)
    why = ""
    if options.backend == AUTO and opened.manifest.engine is None:
        from .tuning.auto import resolve  # not needed where a backend is named

        opened, options, why = resolve(opened, options)
    if verification is None and options.verify and opened is not bundle:
        verification = Verification(opened.path)
    try:
        name = _name_of(options.backend, opened)
        backend = get_backend(name)
    finally:
        if verification is not None:  # what is damaged is said first, and nothing of it loaded
            verification.finish(opened)
    asked = _run_options(name, options)
    with one_load_at_a_time(opened.path):
        executable = backend.load(opened, asked)
    if why:
        _note(executable, why)
    return Session(
        opened,
        executable,
        time.perf_counter() - started,
        options.batching,
        _encoder_opener(opened, name, asked, options),
    )


def _name_of(backend: str, bundle: Bundle) -> str:
    """The backend that is meant: an engine leaves no choice where none is named."""
    if backend not in ("", AUTO):
        return backend
    return first_available() if bundle.manifest.engine is None else "tensorrt"


def _run_options(backend: str, options: OpenOptions) -> RunOptions:
    """What is asked of a backend, with what the caller left open filled in."""
    device = options.device or ("cuda:0" if backend in GPU_BACKENDS else "cpu")
    threads = options.threads or usable_cpus()
    streams = options.streams
    if streams is None:
        streams = best_streams(backend, device, threads)
    asked = RunOptions(device, threads, options.trust, options.precision, streams)
    check_streams(backend, asked)
    return asked


def _note(executable: Executable, note: str) -> None:
    facts = executable.facts
    executable.facts = dataclasses.replace(facts, notes=(*facts.notes, note))


def _encoder_opener(
    decoder: Bundle, backend: str, asked: RunOptions, options: OpenOptions
) -> Callable[[], Session] | None:
    """What opens the encoder of a decoder, when it is needed; None for any other bundle."""
    if decoder.manifest.encoder is None:
        return None

    def opener() -> Session:
        from .generation.encoders import encoder_of  # few bundles have one

        like = dataclasses.replace(
            options, backend=backend, threads=asked.threads, streams=1, batching=None, encoder=""
        )
        started = time.perf_counter()
        return load_session(encoder_of(decoder, options.encoder), like, None, started)

    return opener

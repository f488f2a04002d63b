"""Whether a bundle still gives what PyTorch gave: its proof, run again."""

from __future__ import annotations

from tfx.bundle import Bundle
from tfx.errors import BackendError
from tfx.report import ParityReport

from .backend import AUTO, RunOptions, float_type
from .compare import tolerance_of
from .generation.kv_cache import DECODED, cache_specs, stepwise
from .opening import open_session
from .proof import PROOF_FILE, Run, check_cases, load_cases


def check_bundle(
    bundle: Bundle,
    *,
    backend: str = "",
    device: str = "",
    threads: int | None = None,
    precision: str = "",
    trust: bool = False,
) -> ParityReport:
    """Run the feeds a bundle carries on a backend and compare with what PyTorch gave.

    Args:
        bundle: An opened bundle, its digests verified.
        backend: As in ``open_session``, but for "auto", which may run another bundle; "torch"
            checks that the source still gives the same.
        device: As in ``open_session``.
        threads: CPU threads; None for all this process may use.
        precision: As in ``open_session``; a lower one is judged by its own tolerance.
        trust: Let a factory's Python file run.

    Raises:
        BundleError: If the bundle carries no proof.
        BackendError: If the backend cannot run it, or is "auto".
    """
    if backend == AUTO:
        raise BackendError(
            "backend 'auto' may run a bundle made from this one, which would not be checked",
            hint="Name a backend, or none.",
        )
    cases = load_cases(bundle.path / PROOF_FILE)
    runs_in = float_type(bundle, RunOptions(precision=precision))
    tolerance = tolerance_of(bundle.manifest.precision, runs_in)
    with open_session(
        bundle, backend=backend, device=device, threads=threads, precision=precision, trust=trust
    ) as session:
        run: Run = session.predict
        if cache_specs(session.signature):
            run = stepwise(run, session.signature, DECODED)
        errors, verdict = check_cases(run, cases, tolerance)
    parity = bundle.manifest.parity
    return ParityReport(
        reference=f"stored outputs of {parity.reference if parity else 'PyTorch'}",
        backend=str(session.report.facts),
        shapes=tuple(case.label for case in cases),
        outputs=errors,
        checks=(verdict,),
    )

"""Reports of tfx bench made up without measuring, for what reads them."""

import base64
import zlib

import numpy as np

from tfx.bench.measuring.accuracy import Accuracy, Change
from tfx.bench.measuring.machine import Machine
from tfx.bench.measuring.report import (
    Agreement,
    BenchReport,
    Measurement,
    Row,
    Status,
    percentiles_of,
)
from tfx.bench.measuring.workload import Plan
from tfx.runtime.backend import RunFacts
from tfx.runtime.clock import WarmUp
from tfx.runtime.stats import Comparison, judge, latency_of

MACHINE = Machine(
    cpu="Made-up CPU",
    flags=("avx2", "amx_int8"),
    cores=4,
    affinity=4,
    usable_cpus=2,
    governor="",
    load_average=0.1,
    memory_mb=16000,
    os="Linux 6.1",
    python="3.11.7",
    versions={"tfx-toolkit": "0.1.0", "onnxruntime": "1.31.1"},
)

SPEEDS_MS = {
    ("minilm-sst2", "torch"): 21.0,
    ("minilm-sst2", "torch-compiled"): 17.0,
    ("minilm-sst2", "onnxruntime"): 11.0,
    ("minilm-sst2", "openvino"): 9.5,
    ("minilm-sst2-bf16", "openvino"): 4.1,
    ("minilm-sst2-fp16", "onnxruntime"): 11.4,
    ("minilm-sst2-int8", "onnxruntime"): 6.0,
    ("minilm-sst2-int8", "openvino"): 3.4,
}
RIGHT = {"minilm-sst2-int8": 0.902, "minilm-sst2-bf16": 0.910}


def accuracy(right, *, samples=872, change=True, seed=0):
    """An accuracy with so many right; the same samples are wrong first in every row."""
    rows = (np.arange(samples) < round(right * samples)).astype("<f8")[:, None]
    half = 1.96 * (right * (1 - right) / samples) ** 0.5
    apart = right - 0.9117
    return Accuracy(
        metric="accuracy",
        unit="share",
        better="higher",
        value=float(rows.mean()),
        low=right - half,
        high=right + half,
        samples=samples,
        data="dev.tsv",
        data_digest="d" * 64,
        warnings=(),
        packed=base64.b64encode(zlib.compress(rows.tobytes())).decode(),
        change=Change("minilm-sst2 on torch", apart, apart - 0.006, apart + 0.006)
        if change
        else None,
    )


def times_ns(median_ms, rng, *, rounds=40, calls=10, drift=None, noise=0.03):
    """Calls of some rounds: what the machine does in a round hits all of its calls."""
    drift = np.ones(rounds) if drift is None else drift
    own = np.exp(rng.normal(0, noise, (rounds, calls)) + 0.3 * (rng.random((rounds, calls)) < 0.03))
    return (median_ms * 1e6 * drift[:, None] * own).astype(np.int64).tolist()


def made_up(
    speeds_ms=SPEEDS_MS,
    *,
    shapes=({"batch": 1, "sequence": 128}, {"batch": 8, "sequence": 128}),
    seed=0,
    slow=1.0,
    right=RIGHT,
    with_accuracy=True,
    created="2026-11-21T10:00:00+00:00",
    plan=None,
    failed=(),
    noise=0.03,
    load_noise=0.0,
    processes=1,
):
    """A report of two shapes.

    Args:
        speeds_ms: Median of a batch of 1, by bundle and backend; the first is the reference.
        shapes: Sizes.
        seed: Of the noise.
        slow: What the machine as a whole multiplies times with.
        right: Share that a bundle has right; 0.9117 where not named.
        with_accuracy: Whether rows have one.
        created: When.
        plan: By default one with its default values.
        failed: Pairs of bundle and backend that did not run.
        noise: Of each call, as standard deviation of its logarithm.
        load_noise: The same of each process of a row: where its memory happens to lie.
        processes: Of each row; its 40 rounds are divided among them.
    """
    rng = np.random.default_rng(seed)
    rows = []
    probes = {}
    for sizes in shapes:
        drift = slow * np.exp(np.cumsum(rng.normal(0, 0.01, 40)))
        factor = float(np.prod(list(sizes.values()))) / 128
        reference = None
        title = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        probes[title] = tuple((5 * drift * np.exp(rng.normal(0, noise, 40))).tolist())
        for (bundle, backend), speed in speeds_ms.items():
            loaded = np.exp(rng.normal(0, load_noise, processes)).repeat(40 // processes)
            times = times_ns(speed * factor, rng, drift=drift * loaded, noise=noise)
            reference = reference or times
            rows.append(
                row_of(
                    bundle,
                    backend,
                    sizes,
                    times,
                    None
                    if times is reference
                    else compared(times, reference, "{} on {}".format(*next(iter(speeds_ms)))),
                    accuracy(right.get(bundle, 0.9117), change=times is not reference)
                    if with_accuracy
                    else None,
                    processes,
                )
            )
        rows += [not_run(*pair, sizes) for pair in failed]
    return BenchReport(MACHINE, plan or Plan(), ("a note",), tuple(rows), created, (), probes)


def compared(times, reference, against):
    """Medians alone: a bootstrap for each made-up row would take most of a test's time."""
    speedup = float(np.median(reference) / np.median(times))
    return Comparison(against, speedup, speedup * 0.99, speedup * 1.01, judge(speedup, speedup))


def row_of(
    bundle,
    backend,
    sizes,
    times,
    comparison: Comparison | None,
    about: Accuracy | None,
    processes=1,
) -> Row:
    """A measured row."""
    latency = latency_of(times)
    return Row(
        bundle=bundle,
        digest=f"{abs(hash(bundle)) % 16:x}" * 64,
        random_weights=False,
        backend=backend,
        precision="",
        sizes=sizes,
        status=Status.MEASURED,
        reason="",
        measurement=Measurement(
            facts=RunFacts(backend, "1.0", "made up", "cpu", "float32", 2),
            load_s=0.5,
            first_call_ms=40.0,
            peak_memory_mb=200.0,
            warm_up=WarmUp(15, 0.2, latency.median_ms, True),
            rounds=len(times),
            latency=latency,
            throughput_per_s=sizes.get("batch", 1) * 1000 / latency.median_ms,
            round_ms=tuple(float(np.median(one)) / 1e6 for one in times),
            percentiles_ms=percentiles_of(times),
            process_rounds=(len(times) // processes,) * processes,
            round_min_ms=tuple(min(one) / 1e6 for one in times),
        ),
        agreement=(Agreement("logits", 3e-6, 1e-6, 1.0, 2e-6, 1e-4),),
        no_reference="",
        comparison=comparison,
        model_bytes=90_000_000,
        accuracy=about,
    )


def not_run(bundle, backend, sizes) -> Row:
    """A row that did not run."""
    return Row(
        bundle=bundle,
        digest="0" * 64,
        random_weights=False,
        backend=backend,
        precision="",
        sizes=sizes,
        status=Status.NOT_RUN,
        reason=f"{backend} <is> not installed & more",
        measurement=None,
        agreement=None,
        no_reference="",
        comparison=None,
    )

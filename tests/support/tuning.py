"""A world in which candidates of ``tfx tune`` take the time, and give the outputs, a test says."""

from dataclasses import dataclass

import numpy as np

from support.bundles import write_bundle
from tfx.console import Progress
from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.manifest import Step
from tfx.quantization import Accuracy, Quantization, QuantizeRecipe
from tfx.runtime.backend import RunFacts
from tfx.runtime.tuning.contest import Contest
from tfx.runtime.tuning.plan import TuningPlan
from tfx.runtime.tuning.worker import Loaded, feed_of

MS = 1_000_000


def proof(drop, metric="accuracy", backend="onnxruntime 1.31.1 CPUExecutionProvider int8"):
    """An accuracy that dropped by so much."""
    return Accuracy(metric, 0.9 - drop, 0.9, drop, drop, drop, 100, "dev.tsv", backend)


def write_child(path, parent, *accuracy, max_drop=None, **changes):
    """An int8 child of a bundle, with these proofs; its graph is the parent's kind."""
    made = Quantization(QuantizeRecipe(DType.INT8, max_drop=max_drop), accuracy=accuracy)
    fields = {"step": Step.QUANTIZE, "precision": DType.INT8, "quantization": made} | changes
    return write_bundle(path, parent=parent.as_parent(), **fields)


@dataclass
class Behaviour:
    """What a candidate does.

    Attributes:
        ms: Milliseconds per call.
        noise: Added to every output.
        refuses: Raised by ``load``.
        error: Against the outputs the bundle carries.
        dies_after: Blocks until its process ends.
    """

    ms: float = 10.0
    noise: float = 0.0
    refuses: str = ""
    error: float | None = None
    dies_after: int | None = None


class World:
    """Time passes only in calls and while somebody waits.

    Attributes:
        behaviours: First word after "on" (and precision) to behaviour; see ``of``.
        alive: Workers that hold a process now.
        most_alive: The largest number of them at once.
    """

    def __init__(self, bundle, **behaviours):
        self.bundle = bundle
        self.behaviours = behaviours
        self.now = 0
        self.load_ns = 0
        self.alive = set()
        self.most_alive = 0
        self.loaded = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += int(seconds * 1e9)

    def of(self, candidate):
        """The behaviour of the longest key that fits, e.g. ``openvino_bf16_1`` or ``openvino``."""
        way = [candidate.backend, candidate.precision, str(candidate.threads)]
        names = ("_".join(filter(None, [candidate.bundle, *way])), "_".join(filter(None, way)))
        short = (
            f"{candidate.bundle}_{candidate.backend}",
            "_".join(filter(None, way[:2])),
            candidate.backend,
        )
        for name in (*names, *short):
            if name in self.behaviours:
                return self.behaviours[name]
        return Behaviour()

    def start(self, path, candidate):
        return FakeWorker(self, candidate)

    def contest(self, family=(), *, weights=None, seconds=1000.0, min_cosine=0.995):
        """A contest of ``bundle`` and its children, for the shapes 1x8 and 4x8."""
        feeds = {
            "1x8": feed_of(self.bundle, {"batch": 1, "sequence": 8}, 0),
            "4x8": feed_of(self.bundle, {"batch": 4, "sequence": 8}, 0),
        }
        return Contest(
            self.bundle,
            {one.digest: one for one in (self.bundle, *family)},
            feeds,
            weights or {"1x8": 1, "4x8": 1},
            TuningPlan(min_cosine=min_cosine, seconds=seconds),
            progress=Progress(),
            start=self.start,
            clock=self.clock,
        )


class FakeWorker:
    """A worker of a ``World``."""

    def __init__(self, world, candidate):
        self.world, self.candidate = world, candidate
        self.does = world.of(candidate)
        self.blocks = 0

    def load(self):
        self.world.now += self.world.load_ns
        self.world.loaded.append(str(self.candidate))
        if self.does.refuses:
            raise BackendError(self.does.refuses, hint="Do without.")
        self.world.alive.add(self)
        self.world.most_alive = max(self.world.most_alive, len(self.world.alive))
        lower = {"bf16": DType.BFLOAT16, "fp16": DType.FLOAT16}
        facts = RunFacts(
            self.candidate.backend,
            "1.0",
            "CPU",
            "cpu",
            lower.get(self.candidate.precision, DType.FLOAT32),
            self.candidate.threads,
        )
        return Loaded(facts, 0.1, self.does.error, 0.2 if self.candidate.precision else 1e-4)

    def outputs(self, shape):
        rng = np.random.default_rng(shape)
        rows = 4 if shape else 1
        values = rng.normal(size=(rows, 8, 8)).astype(np.float32)
        return {"last_hidden_state": values + self.does.noise}

    def block(self, shape, calls):
        assert self in self.world.alive
        self.blocks += 1
        if self.does.dies_after is not None and self.blocks > self.does.dies_after:
            raise BackendError("the process ended: signal 11")
        ns = int(self.does.ms * MS * (4 if shape else 1))
        self.world.now += ns * (calls + 1)
        return [ns] * calls

    def close(self):
        self.world.alive.discard(self)

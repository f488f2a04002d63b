"""Where a run's time goes, by operator and by layer, as each engine itself tells it.

ONNX Runtime writes a trace of its nodes, OpenVINO counts the time of each node of its compiled
graph, and PyTorch's profiler that of its operators, which run within the module that calls them.
Compiled, PyTorch has no modules any more, and so no layers. What an engine fuses is one node, under
the name of one of its parts.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.bundle import Bundle
from tfx.errors import BackendError
from tfx.extras import need
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.clock import time_calls
from tfx.runtime.cpus import usable_cpus
from tfx.signature import Feed

from .family import OF_SOURCE
from .spent import Share, kinds_of
from .workload import Shape

if TYPE_CHECKING:
    from rich.console import Console

WARM_UP_CALLS = 5
# Of a module: the first repeated part of a model and its number, as in "encoder.layer.3.output".
LAYER = re.compile(r"(?:^|[/._])(layers?|h|block|blocks|stages?)[./_](\d+)(?=[/._]|$)")
ELSEWHERE = "elsewhere"
# What a module's time goes by in PyTorch's profiler, before its name.
MODULE = "module of the model: "


@dataclass(frozen=True, slots=True)
class Profile:
    """One bundle on one backend at one shape.

    Attributes:
        bundle: Its name.
        backend: What ran it.
        shape: Of the feed.
        runs: How many were counted; a node's time is its median, PyTorch's operators' the mean.
        run_ms: Of one whole run, median, with the profiler off where it can be.
        ops: By operator, most time first.
        layers: By layer, in order; empty where nodes carry no names of layers.
        notes: What a reader must know, one sentence each.
    """

    bundle: str
    backend: str
    shape: str
    runs: int
    run_ms: float
    ops: tuple[Share, ...]
    layers: tuple[Share, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """Time of one node, over all runs.

    Attributes:
        name: In the graph; "" for none.
        op: Its operator.
        ns: In all runs.
    """

    name: str
    op: str
    ns: float


def profile_bundle(
    bundle: Bundle,
    backend: str,
    shape: Shape,
    *,
    threads: int | None = None,
    precision: str = "",
    runs: int = 20,
    trust: bool = False,
    seed: int = 0,
) -> Profile:
    """Run a bundle and count where its time goes.

    Args:
        bundle: What to run.
        backend: A name in ``PROFILERS``.
        shape: Of the feed.
        threads: CPU threads; None for all this process may use.
        precision: Type of float products; "" for the bundle's own.
        runs: How many to count, after a few that are not.
        trust: Whether a factory's Python file may run.
        seed: Of the feed.

    Raises:
        BackendError: If the backend cannot run the bundle, or has no profiler.
    """
    if backend not in PROFILERS:
        raise BackendError(
            f"{backend} does not say where its time goes",
            hint=f"Choose one of: {', '.join(PROFILERS)}.",
        )
    if runs < 1:
        raise BackendError(f"runs is {runs}, expected 1 or more")
    bundle.verify()
    options = RunOptions(threads=threads or usable_cpus(), precision=precision, trust=trust)
    executable = get_backend(backend).load(bundle, options)
    feed = shape.feed_for(bundle.manifest.signature, seed)
    try:
        call = _calling(executable, feed)
        time_calls(call, WARM_UP_CALLS, time.perf_counter_ns)
        times = sorted(time_calls(call, runs, time.perf_counter_ns))
        nodes = PROFILERS[backend](bundle, executable, options, feed, runs)
        about = str(executable.facts)
    finally:
        executable.close()
    scopes = {} if backend in OF_SOURCE else scopes_of(bundle)
    ops = shares_of(nodes, runs, lambda node: node.op)
    layers = shares_of(nodes, runs, lambda node: layer_of(scopes.get(node.name, node.name)))
    layers = tuple(sorted(layers, key=lambda one: (one.name == ELSEWHERE, _natural(one.name))))
    named = any(one.name != ELSEWHERE for one in layers)
    notes = ["times of nodes are with the profiler on, which takes some itself"]
    if not named:
        notes.append(f"{backend} names no layers of this model")
    return Profile(
        bundle=bundle.name,
        backend=about,
        shape=str(shape),
        runs=runs,
        run_ms=times[len(times) // 2] / 1e6,
        ops=ops,
        layers=layers if named else (),
        notes=tuple(notes),
    )


def shares_of(nodes: Iterable[Node], runs: int, group: Callable[[Node], str]) -> tuple[Share, ...]:
    """Time by group, most first.

    Args:
        nodes: With their time over all runs.
        runs: How many those were.
        group: Name of a node's group.
    """
    total: dict[str, tuple[float, int]] = {}
    for node in nodes:
        name = group(node)
        spent, count = total.get(name, (0.0, 0))
        total[name] = (spent + node.ns, count + 1)
    whole = sum(spent for spent, _ in total.values()) or 1.0
    found = [
        Share(name, spent / runs / 1e6, spent / whole, count)
        for name, (spent, count) in total.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.ms))


def scopes_of(bundle: Bundle) -> dict[str, str]:
    """Module of PyTorch that a node came from, by its name and by those of what it gives."""
    graph = need("onnx").load(str(bundle.model), load_external_data=False).graph
    found: dict[str, str] = {}
    for node in graph.node:
        scope = next((one.value for one in node.metadata_props if one.key == "scope"), "")
        if scope:
            found |= dict.fromkeys((node.name, *node.output), scope)
    return found


def layer_of(name: str) -> str:
    """The layer that a module or node is in by its name, as "layer 3"; ``ELSEWHERE`` for none."""
    match = LAYER.search(name)
    return f"{match[1].rstrip('s')} {match[2]}" if match else ELSEWHERE


def show_profile(out: Console, found: Profile, *, most: int = 15) -> None:
    """Print the run's time, then operators and layers.

    Args:
        out: Where.
        found: What.
        most: Operators shown; the others are one line.
    """
    from rich.table import Table

    out.print(f"{found.bundle} on {found.backend}: {found.shape}", style="bold", markup=False)
    out.print(f"{found.run_ms:.3g} ms a run, median of {found.runs} without profiler")
    rest = found.ops[most:]
    ops = found.ops[:most]
    if rest:
        sums = sum(one.ms for one in rest), sum(one.share for one in rest)
        ops += (Share(f"{len(rest)} others", *sums, sum(one.nodes for one in rest)),)
    kinds = kinds_of(found.ops)
    for name, shares in (("kind", kinds), ("operator", ops), ("layer", found.layers)):
        if not shares:
            continue
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column(name, overflow="fold")
        for head in ("ms", "share", "nodes"):
            table.add_column(head, justify="right")
        table.add_column("")
        for one in shares:
            bar = "█" * round(24 * one.share)
            table.add_row(one.name, f"{one.ms:.3f}", f"{one.share:.1%}", str(one.nodes), bar)
        out.print(table)
    for note in found.notes:
        out.print(f"note: {note}", markup=False)


def _calling(executable: Any, feed: Feed) -> Callable[[], object]:
    return lambda: executable.run(feed)


def _onnxruntime(
    bundle: Bundle, executable: Any, options: RunOptions, feed: Feed, runs: int
) -> list[Node]:
    """ONNX Runtime's own trace, of a session with the same settings and profiling on."""
    from tfx.runtime.backends.onnxruntime import SLOWER_FUSIONS, settings_for

    ort = need("onnxruntime")
    settings = settings_for(ort, bundle, options)
    settings.enable_profiling = True
    variant = bundle.manifest.variants.get("onnxruntime-cpu")
    graph = bundle.path / variant if variant else bundle.model
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "trace")
        session = ort.InferenceSession(
            str(graph),
            settings,
            providers=executable.inference.get_providers(),
            disabled_optimizers=SLOWER_FUSIONS,
        )
        for _ in range(WARM_UP_CALLS + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text())
    return nodes_of_trace(events, runs)


def nodes_of_trace(events: Iterable[Mapping[str, Any]], runs: int) -> list[Node]:
    """Nodes of ONNX Runtime's trace, of its last ``runs`` runs."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key = name.removesuffix("_kernel_time"), str(event["args"].get("op_name", "?"))
            times.setdefault(key, []).append(event["dur"] * 1e3)
    return [Node(name, op, _usual(spent[-runs:])) for (name, op), spent in times.items()]


def _openvino(
    bundle: Bundle, executable: Any, options: RunOptions, feed: Feed, runs: int
) -> list[Node]:
    """OpenVINO's counters, of the graph compiled again with them on."""
    from tfx.runtime.backend import float_type, rounds_activations
    from tfx.runtime.backends.openvino import CAPABILITIES, PLUGIN, read_graph, settings_of

    openvino = need("openvino")
    core = openvino.Core()
    floats = float_type(bundle, options)
    able = core.get_property(PLUGIN, "OPTIMIZATION_CAPABILITIES")
    if CAPABILITIES[floats] not in able:  # as the backend does, which says so in its facts
        floats = next(dtype for dtype, name in CAPABILITIES.items() if name == "FP32")
    model = read_graph(core, bundle)
    rounds = rounds_activations(bundle, options)
    settings = settings_of(options.threads, floats, rounds=rounds) | {"PERF_COUNT": True}
    request = core.compile_model(model, PLUGIN, settings).create_infer_request()
    spent: dict[tuple[str, str], list[float]] = {}
    for index in range(WARM_UP_CALLS + runs):
        request.infer(dict(feed))
        if index < WARM_UP_CALLS:
            continue
        for one in request.get_profiling_info():
            if one.real_time.total_seconds() > 0:
                key = one.node_name, one.node_type
                spent.setdefault(key, []).append(one.real_time.total_seconds() * 1e9)
    return [Node(name, op, _usual(times)) for (name, op), times in spent.items()]


def _usual(times: Sequence[float]) -> float:
    """As many medians as there are times: a run that something else disturbed does not count."""
    return len(times) * statistics.median(times)


def _torch(
    bundle: Bundle, executable: Any, options: RunOptions, feed: Feed, runs: int
) -> list[Node]:
    """PyTorch's operators, each with its own time and not that of what it calls."""
    profiler = need("torch.profiler")
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as watch:
        for _ in range(runs):
            executable.run(feed)
    return [
        Node("", event.key, event.self_cpu_time_total * 1e3)
        for event in watch.key_averages()
        if event.self_cpu_time_total > 0
    ]


def _torch_modules(
    bundle: Bundle, executable: Any, options: RunOptions, feed: Feed, runs: int
) -> list[Node]:
    """PyTorch's operators, each with the layer's module that it ran in."""
    profiler = need("torch.profiler")
    with (
        _told_layers(executable.module),
        profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as watch,
    ):
        for _ in range(runs):
            executable.run(feed)
    spent: Counter[tuple[str, str]] = Counter()
    for event in watch.events():
        if event.self_cpu_time_total > 0 and not event.key.startswith(MODULE):
            spent[_module_of(event), event.key] += event.self_cpu_time_total * 1e3
    return [Node(name, op, ns) for (name, op), ns in spent.items()]


@contextlib.contextmanager
def _told_layers(module: Any) -> Iterator[None]:
    """Tell PyTorch's profiler where each layer of a model begins and ends."""
    record_function = need("torch.profiler").record_function
    handles = []
    for name, part in getattr(module, "named_modules", dict)() or ():
        match = LAYER.search(name)
        if match is None or match.end() != len(name):
            continue
        open_marks: list[Any] = []

        def enter(*_: Any, name: str = name, marks: list[Any] = open_marks) -> None:
            marks.append(record_function(MODULE + name))
            marks[-1].__enter__()

        def leave(*_: Any, marks: list[Any] = open_marks) -> None:
            marks.pop().__exit__(None, None, None)

        handles += [
            part.register_forward_pre_hook(enter),
            part.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module_of(event: Any) -> str:
    """Name of the innermost layer that an event of the profiler is in; "" for none."""
    while (event := event.cpu_parent) is not None:
        if event.key.startswith(MODULE):
            return str(event.key).removeprefix(MODULE)
    return ""


def _natural(name: str) -> tuple[str, int]:
    head, _, number = name.rpartition(" ")
    return (head, int(number)) if number.isdigit() else (name, -1)


# How each backend is asked; the others do not say.
PROFILERS: dict[str, Callable[[Bundle, Any, RunOptions, Feed, int], list[Node]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch_modules,
    "torch-compiled": _torch,
}

"""``python -m tfx.bench.graphs``: would another way to write a bundle's attention be faster?

And do the fusions pay that ONNX Runtime is kept from? Variants of the graph are made in memory,
loaded side by side in one process with one thread each, and run in turn, in a new order every
round. What is compared is processor time: of one thread it is the time of a call on an idle
machine, and it does not grow with what else the machine does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfx.bundle import Bundle
from tfx.console import FOLDER, chosen_bundle, console, told_errors
from tfx.errors import BundleError
from tfx.extras import need
from tfx.feeds import random_feed
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.backends import onnxruntime
from tfx.runtime.stats import median_interval
from tfx.signature import BATCH, SEQUENCE, Feed

from .pages.figures import span_text

AS_IT_IS = "as it is"
EVERY_FUSION = "every fusion"


def packed(model: Any) -> int:
    """One product for queries, keys and values of each attention; returns how many."""
    ir = need("onnx_ir")
    changed = 0
    for node in _attentions(model):
        found = [_projection(value) for value in node.inputs[:3]]
        products = [one for one in found if one is not None]
        if len(products) != 3 or len({product.inputs[0] for product, _ in products}) != 1:
            continue
        first = products[0][0]
        weights = [product.inputs[1].const_value.numpy() for product, _ in products]
        biases = [add.inputs[1].const_value.numpy() for _, add in products]
        whole = _insert(
            model, first, "MatMul", [first.inputs[0], _constant(model, np.concatenate(weights, 1))]
        )
        whole = _insert(model, first, "Add", [whole, _constant(model, np.concatenate(biases))])
        sizes = _constant(model, np.array([weight.shape[1] for weight in weights]))
        split = ir.node("Split", [whole, sizes], {"axis": -1}, num_outputs=3)
        model.graph.insert_before(first, split)
        for (_, add), part in zip(products, split.outputs, strict=True):
            part.type = add.outputs[0].type
            ir.convenience.replace_all_uses_with(add.outputs[0], part)
        changed += 1
    return changed


def split_heads(model: Any) -> int:
    """Heads split and merged by Reshape and Transpose outside of each attention."""
    ir = need("onnx_ir")
    changed = 0
    for node in _attentions(model):
        heads = [node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads")]
        if not all(heads):
            continue
        swap = {"perm": [0, 2, 1, 3]}
        inputs = []
        for value, count in zip(node.inputs[:3], (heads[0], heads[1], heads[1]), strict=True):
            sizes = _constant(model, np.array([0, 0, count, -1]))
            apart = _insert(model, node, "Reshape", [value, sizes])
            inputs.append(_insert(model, node, "Transpose", [apart], swap))
        attributes = {
            name: one for name, one in node.attributes.items() if not name.endswith("_num_heads")
        }
        output = _insert(model, node, "Attention", [*inputs, *node.inputs[3:]], attributes)
        output = _insert(model, node, "Transpose", [output], swap)
        output = _insert(model, node, "Reshape", [output, _constant(model, np.array([0, 0, -1]))])
        ir.convenience.replace_all_uses_with(node.outputs[0], output)
        changed += 1
    return changed


def unguarded(model: Any) -> int:
    """No ``Where`` behind each attention, for rows that mask every key."""
    ir = need("onnx_ir")
    changed = 0
    for node in _attentions(model):
        uses = [use.node for use in node.outputs[0].uses()]
        if len(uses) == 1 and uses[0].op_type == "Where":
            ir.convenience.replace_all_uses_with(uses[0].outputs[0], node.outputs[0])
            changed += 1
    return changed


def plain_mask(model: Any) -> int:
    """A padding mask broadcast by Unsqueeze, where tracing looks up each position of it."""
    ir = need("onnx_ir")
    changed = 0
    for node in [one for one in model.graph if one.op_type == "GatherND"]:
        if node.outputs[0].shape is None or list(node.outputs[0].shape)[1:3] != [1, 1]:
            continue
        axes = _constant(model, np.array([1, 2]))
        mask = _insert(model, node, "Unsqueeze", [node.inputs[0], axes])
        ir.convenience.replace_all_uses_with(node.outputs[0], mask)
        changed += 1
    return changed


VARIANTS: Mapping[str, tuple[Callable[[Any], int], ...]] = {
    "heads split outside": (split_heads,),
    "Q, K, V packed": (packed,),
    "no guard": (unguarded,),
    "plain mask": (plain_mask,),
    "no guard, plain mask": (unguarded, plain_mask),
}


def write_variants(bundle: Bundle, folder: Path) -> Iterator[tuple[str, Bundle]]:
    """The bundle itself, and each variant that changes anything, as bundles without a manifest."""
    ir, passes = need("onnx_ir"), need("onnx_ir.passes.common")
    yield AS_IT_IS, bundle
    if bundle.manifest.variants:  # what runs is another graph than the one that would be changed
        return
    for name, changes in VARIANTS.items():
        model = ir.load(bundle.model)
        ir.external_data.load_to_model(model)
        if not all(change(model) for change in changes):
            continue
        passes.RemoveUnusedNodesPass()(model)
        passes.NameFixPass()(model)
        path = folder / name
        path.mkdir()
        ir.save(model, path / bundle.manifest.model, external_data="weights")
        # Its own, for what a backend compiles is kept by digest: a variant is not its neighbour.
        digest = hashlib.sha256(f"{bundle.digest} {name}".encode()).hexdigest()
        yield name, dataclasses.replace(bundle, path=path, digest=digest)


@contextlib.contextmanager
def every_fusion() -> Iterator[None]:
    """Have ONNX Runtime fuse what the backend keeps it from (``SLOWER_FUSIONS``)."""
    left_out, onnxruntime.SLOWER_FUSIONS = onnxruntime.SLOWER_FUSIONS, ()
    try:
        yield
    finally:
        onnxruntime.SLOWER_FUSIONS = left_out


def measure(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Processor seconds of each, ``[rounds]``, run in turn in an order drawn every round."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in rng.permutation(list(runs)):
            started = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - started)
    return {name: np.array(values) for name, values in times.items()}


def measure_variants(
    bundle: Bundle, backend: str, feed: Feed, rounds: int
) -> dict[str, np.ndarray]:
    """Processor seconds of each variant of a bundle, ``[rounds]``.

    Raises:
        BackendError: If the backend cannot run one of them.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {}
        options = RunOptions(threads=1)
        for name, variant in write_variants(bundle, folder):
            executable = get_backend(backend).load(variant, options)
            stack.callback(executable.close)
            runs[name] = _runner(executable, feed)
        if backend == "onnxruntime":
            with every_fusion():
                executable = get_backend(backend).load(bundle, options)
            stack.callback(executable.close)
            runs[EVERY_FUSION] = _runner(executable, feed)
        for run in runs.values():
            run()  # what is made on the first call
        return measure(runs, rounds)


@click.command
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--backend", default="onnxruntime", show_default=True, help="What to run it on.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--length", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=100, show_default=True)
def main(bundle: Path | None, backend: str, batch: int, length: int, rounds: int) -> None:
    """Compare ways to write the attention of a text model's BUNDLE."""
    with told_errors():
        opened = chosen_bundle(bundle, verify=True)
        times = measure_variants(opened, backend, _feed(opened, batch, length), rounds)
    console().print(f"{opened.name}, {backend}, {batch} x {length}, {rounds} rounds", markup=False)
    console().print(table(times), markup=False)


def table(times: Mapping[str, np.ndarray]) -> str:
    """Median milliseconds of each, and the median of its ratio to the first, with its interval."""
    base = times[AS_IT_IS]
    lines = []
    for name, values in times.items():
        ratio, low, high = median_interval(values / base)
        lines.append(
            f"  {name:<22} {np.median(values) * 1e3:8.2f} ms  {ratio:.3f} "
            f"{span_text(low, high, '.3f')}"
        )
    return "\n".join(lines)


def _feed(bundle: Bundle, batch: int, length: int) -> Feed:
    signature = bundle.manifest.signature
    axes = {axis for spec in signature.inputs for axis in spec.shape}
    if not {BATCH, SEQUENCE} <= axes:
        raise BundleError(
            f"{bundle.name} takes no text: its inputs have no axes {BATCH!r} and {SEQUENCE!r}",
            hint="Name a bundle that takes texts.",
        )
    sizes = {BATCH: batch, SEQUENCE: length}
    return random_feed(signature, sizes, np.random.default_rng(0), padding="right")


def _runner(executable: Any, feed: Feed) -> Callable[[], object]:
    return lambda: executable.run(feed)


def _attentions(model: Any) -> Sequence[Any]:
    return [node for node in model.graph if node.op_type == "Attention" and not node.domain]


def _projection(value: Any) -> tuple[Any, Any] | None:
    """The MatMul and the Add of a projection with constant weights, behind a split of heads."""
    node = value.producer()
    while node is not None and node.op_type in ("Transpose", "Reshape"):
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Add" or node.inputs[1].const_value is None:
        return None
    product = node.inputs[0].producer()
    if product is None or product.op_type != "MatMul" or product.inputs[1].const_value is None:
        return None
    return product, node


def _insert(
    model: Any, before: Any, op_type: str, inputs: Sequence[Any], attributes: Any = None
) -> Any:
    node = need("onnx_ir").node(op_type, inputs, attributes or {})
    model.graph.insert_before(before, node)
    node.outputs[0].type = inputs[0].type
    return node.outputs[0]


def _constant(model: Any, array: np.ndarray) -> Any:
    ir = need("onnx_ir")
    name = f"variant_{len(model.graph.initializers)}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
    model.graph.initializers[name] = value
    return value


if __name__ == "__main__":
    main()

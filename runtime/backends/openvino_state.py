"""Keys and values as OpenVINO's own state: the cache of a graph never leaves the plugin.

The plugin runs attention on a state to which a step adds its tokens as one kernel, which keeps the
cache in memory with room to grow. Through inputs and outputs it is copied in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfx.errors import BackendError
from tfx.extras import need
from tfx.signature import Feed, Signature

from ..backend import RunFacts, session_closed
from ..generation.kv_cache import MASK, POSITION, cache_specs, present_of
from .openvino_graph import ATTENTION, KEY, QUERY, VALUE
from .openvino_requests import output_ports, run_request

# Which row of the state each row of a run goes on with.
ROWS = "tfx_rows"

# What may stand between a cache and attention where a head of keys serves several of queries.
REPEATS = frozenset({"Reshape", "Tile", "Unsqueeze", "Gather", "Broadcast"})


def keep_state(model: Any, signature: Signature) -> bool:
    """Make states of the inputs that hold a cache, and of the outputs that give it back.

    What was written to places of a cache is added to the end of a state. So ``cache_position``
    must go on where the state ends, and ``attention_mask`` ends with the tokens of the run.

    Args:
        model: OpenVINO's ``Model`` as read, changed in place.
        signature: Of the bundle.

    Returns:
        Whether it was done; False, and nothing changed, where the graph does more with a cache
        than to write to it.
    """
    if not (specs := cache_specs(signature)):
        return False
    inputs = {name: node for node in model.get_parameters() for name in node.output(0).get_names()}
    # A decoder beside an encoder has no mask to say how many places are taken.
    if MASK not in inputs or any(_writes(inputs[spec.name]) is None for spec in specs):
        return False
    openvino = need("openvino")
    ops = openvino.opset13
    zero = ops.constant(np.int64(0))
    rows = ops.parameter([-1], openvino.Type.i32, name=ROWS)
    rows.output(0).set_names({ROWS})
    size = ops.shape_of(inputs[MASK])  # [batch, capacity]
    batch, capacity = (ops.gather(size, ops.constant(np.array([axis])), zero) for axis in (0, 1))
    caches = []
    for spec in specs:
        past = inputs[spec.name]
        heads, width = (int(spec.shape[axis]) for axis in (1, 3))
        written = _writes(past)
        shape = ops.concat([batch, _ints(heads), capacity, _ints(width)], axis=0)
        for target in list(past.output(0).get_target_inputs()):
            if target.get_node().get_type_name() == "ShapeOf":
                target.get_node().output(0).replace(shape.output(0))
        past.set_partial_shape(openvino.PartialShape([-1, heads, -1, width]))
        whole = ops.concat([ops.gather(past, rows, zero), written.input_value(2)], axis=2)
        names = written.output(0).get_names()
        written.output(0).replace(whole.output(0))
        whole.output(0).add_names(names)
        caches.append(whole.get_friendly_name())
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    _repeat_plainly(model, caches)
    pairs = {spec.name: present_of(spec.name) for spec in specs}
    make_stateful = need("openvino._offline_transformations").apply_make_stateful_transformation
    make_stateful(model, pairs)
    count = ops.gather(ops.shape_of(inputs["input_ids"]), ops.constant(np.array([0])), zero)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = node.get_output_partial_shape(0)
            heads, width = (sizes[axis].get_length() for axis in (1, 3))
            empty = ops.concat([count, _ints(heads, 0, width)], axis=0)
            nothing = ops.constant(np.zeros((), node.get_output_element_type(0).to_dtype()))
            node.set_arguments([ops.broadcast(nothing, empty)])
    model.validate_nodes_and_infer_types()
    return True


def _ints(*values: int) -> Any:
    return need("openvino").opset13.constant(np.array(values, np.int64))


def _writes(past: Any) -> Any:
    """The node that writes to a cache; None if there is anything else that reads it."""
    nodes = [target.get_node() for target in past.output(0).get_target_inputs()]
    writing = [node for node in nodes if node.get_type_name() == "ScatterNDUpdate"]
    shapes = [
        node
        for node in nodes
        if node.get_type_name() == "ShapeOf"
        and node.get_output_element_type(0) == need("openvino").Type.i64
    ]
    if len(writing) != 1 or len(writing) + len(shapes) != len(nodes):
        return None
    return writing[0] if writing[0].input_value(0).get_node() == past else None


def _repeat_plainly(model: Any, caches: Sequence[str]) -> None:
    """Repeat heads of a cache for groups of queries in the one form that the plugin fuses."""
    ops = need("openvino").opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() != ATTENTION:
            continue
        heads = node.input_value(QUERY).get_partial_shape()[1]
        for port in (KEY, VALUE):
            found = node.input_value(port)
            while found.get_node().get_type_name() in REPEATS:
                found = found.get_node().input_value(0)
            shape = found.get_partial_shape()
            if found.get_node().get_friendly_name() not in caches or heads.is_dynamic:
                continue
            count, own = heads.get_length(), shape[1].get_length()
            if count == own:
                continue
            groups = ops.unsqueeze(found, ops.constant(np.int64(2)))
            times = _ints(1, 1, count // own, 1, 1)
            wide = ops.broadcast(groups, times, broadcast_spec="BIDIRECTIONAL")
            whole = ops.reshape(wide, _ints(0, count, -1, shape[3].get_length()), True)
            node.input(port).replace_source_output(whole.output(0))
    model.validate_nodes_and_infer_types()


def _past(state: str) -> str:
    """The input that a state stands for: it is named after that and its output, in one word."""
    return state.partition(present_of("past_"))[0]


class StatefulExecutable:
    """A graph whose cache is OpenVINO's state.

    Attributes:
        facts: What really runs.
        signature: What it takes and gives.
        compiled: OpenVINO's own ``CompiledModel``; None once closed.
    """

    def __init__(self, compiled: Any, signature: Signature, facts: RunFacts) -> None:
        self.facts = facts
        self.signature = signature
        self.compiled = compiled
        self._pasts = [spec.name for spec in cache_specs(signature)]
        gone = {present_of(name) for name in self._pasts}
        kept = [spec for spec in signature.outputs if spec.name not in gone]
        self._outputs = output_ports(compiled.outputs, kept)

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Run the graph once, on the cache in ``feed``; outputs by name, in memory of their own.

        Raises:
            BackendError: If it is closed, tokens go to places that do not follow each other, or
                OpenVINO fails.
        """
        places = feed[POSITION]
        first, end = int(places[0]), int(places[0]) + len(places)
        if not np.array_equal(places, np.arange(first, end)):
            raise BackendError(
                f"openvino writes to places that follow each other, got {POSITION} "
                f"{places.tolist()}",
                hint="Use backend='onnxruntime'.",
            )
        stepping = self.in_place(self.signature)
        given = {name: array for name, array in feed.items() if name not in self._pasts}
        if first:
            stepping.fill({name: feed[name][:, :, :first] for name in self._pasts})
        outputs = stepping.run_all(given)
        states = stepping.states()
        for name in self._pasts:
            whole = feed[name].copy()
            whole[:, :, first:end] = states[name][:, :, first:end]
            outputs[present_of(name)] = whole
        return {spec.name: outputs[spec.name] for spec in self.signature.outputs}

    def in_place(self, signature: Signature) -> OpenVinoState:
        """What runs the graph on a cache of its own.

        Raises:
            BackendError: If it is closed.
        """
        compiled = self.compiled  # its own reference: close() may come
        if compiled is None:
            raise session_closed()
        return OpenVinoState(compiled.create_infer_request(), self._outputs)

    def close(self) -> None:
        """Let go of the model; requests that run end as they would have."""
        self.compiled = None


class OpenVinoState:
    """A request and its state, as a ``Stepping``.

    Attributes:
        copied: Always 0: the plugin adds to its state, and follows rows by their numbers.
    """

    def __init__(self, request: Any, outputs: Mapping[str, int]) -> None:
        """Begin with an empty cache.

        Args:
            request: OpenVINO's ``InferRequest``, of this one alone.
            outputs: Name of each output to its index.
        """
        self._request = request
        self._outputs = outputs
        self._rows: np.ndarray | None = None
        self.copied = 0

    def begin(self, batch: int, capacity: int) -> None:
        """Forget what the state holds."""
        self._request.reset_state()
        self._rows = None

    def grow(self, capacity: int) -> None:
        """Do nothing: the plugin makes room by itself."""

    def take(self, rows: np.ndarray) -> None:
        """Go on with these rows from the next run on."""
        self._rows = np.asarray(rows) if self._rows is None else self._rows[rows]

    def fill(self, cache: Mapping[str, np.ndarray]) -> None:
        """Put keys and values into the state; inputs' names to ``[batch, heads, n, head_dim]``."""
        tensor = need("openvino").Tensor
        for state in self._request.query_state():
            state.state = tensor(np.ascontiguousarray(cache[_past(state.name)]))

    def states(self) -> dict[str, np.ndarray]:
        """Copies of what the state holds, by the names of the inputs it stands for."""
        states = self._request.query_state()
        return {_past(state.name): np.array(state.state.data) for state in states}

    def run(self, feed: Feed) -> np.ndarray:
        """Logits; the state has the tokens of ``feed`` afterwards."""
        return self.run_all(feed)["logits"]

    def run_all(self, feed: Feed) -> dict[str, np.ndarray]:
        """Every output but the cache, in memory of its own.

        Raises:
            BackendError: If OpenVINO fails.
        """
        end = int(feed[POSITION][-1]) + 1
        rows = np.arange(len(feed["input_ids"])) if self._rows is None else self._rows
        given = {
            **feed,
            MASK: np.ascontiguousarray(feed[MASK][:, :end]),
            ROWS: np.ascontiguousarray(rows, np.int32),
        }
        outputs = run_request(self._request, given, self._outputs)
        self._rows = None
        return outputs

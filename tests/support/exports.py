"""What every export promises, as assertions."""

import onnx

from tfx.runtime.parity import check_bundle


def graph_of(bundle):
    return onnx.load(bundle.model)


def count(bundle, operator):
    return sum(node.op_type == operator for node in graph_of(bundle).graph.node)


def assert_well_made(bundle, *, attention):
    """What an export of a checkpoint promises."""
    manifest = bundle.manifest
    bundle.verify()
    onnx.checker.check_model(str(bundle.model), full_check=True)
    graph = graph_of(bundle)
    assert {(entry.domain, entry.version) for entry in graph.opset_import} == {("", 23)}
    assert {node.domain for node in graph.graph.node} == {""}
    assert count(bundle, "Attention") == manifest.facts["attention"] == attention
    assert count(bundle, "Softmax") == manifest.facts["softmax"] == 0
    assert manifest.parity.passed
    assert manifest.parity.checks[0].name == "parity"
    assert manifest.parity.checks[0].error <= 1e-4
    assert manifest.source.digest
    assert check_bundle(bundle, threads=2).passed


def assert_portable(bundle):
    """What an export of a hand-written module promises."""
    bundle.verify()
    assert {node.domain for node in graph_of(bundle).graph.node} == {""}
    assert count(bundle, "Softmax") == 0
    assert bundle.manifest.parity.passed
    assert check_bundle(bundle, threads=2).passed


def claims(bundle):
    """Names of what was checked when the bundle was made."""
    return {check.name for check in bundle.manifest.parity.checks}

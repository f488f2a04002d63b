"""Attention spelled out for TensorRT: the same numbers, and what is left alone."""

import numpy as np
import onnx_ir as ir
import pytest
from support.bundles import write_bundle
from support.graphs import graph_of, operators, run_reference

from tfx.dtypes import DType
from tfx.export.engines.engine import build_engine
from tfx.export.passes.softcap import spell_out_shared_inputs, spell_out_softcaps
from tfx.recipe import EngineRecipe
from tfx.runtime.engines import MODULES
from tfx.signature import ShapeRange, Signature, TensorSpec

SM89 = EngineRecipe(gpus=("sm89",))


def graph(attributes="softcap = 2.5", mask="bool", heads=2, type_="float", last="mask"):
    """One attention of 4 query heads over ``heads`` key heads."""
    return graph_of(
        f"g ({type_}[b, 4, s, 8] q, {type_}[b, {heads}, t, 8] k, {type_}[b, {heads}, t, 8] v, "
        f"{mask}[b, 1, s, t] mask) => ({type_}[b, 4, s, 8] y) {{\n"
        f"  y = Attention <{attributes}> (q, k, v{', ' + last if last else ''})\n}}"
    )


def feed(rng, *, mask="bool", heads=2, dtype=np.float32):
    kept = rng.random((3, 1, 5, 7)) < 0.6
    kept[..., 0] = True
    return {
        "q": rng.normal(size=(3, 4, 5, 8)).astype(dtype) * 3,
        "k": rng.normal(size=(3, heads, 7, 8)).astype(dtype) * 3,
        "v": rng.normal(size=(3, heads, 7, 8)).astype(dtype),
        "mask": kept if mask == "bool" else np.where(kept, 0, -1e4).astype(dtype),
    }


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("mask", ["bool", "float"])
@pytest.mark.parametrize("scale", ["", ", scale = 0.7"])
def test_the_numbers_stay(rng, heads, mask, scale):
    arguments = {"mask": mask, "heads": heads}
    model = graph(f"softcap = 2.5{scale}", **arguments)
    given = feed(rng, **arguments)
    before = run_reference(model, given)[0]
    plain = run_reference(graph(f"softcap = 1e4{scale}", **arguments), given)[0]
    assert np.abs(before - plain).max() > 0.05  # the cap does something
    assert spell_out_softcaps(model) == 1
    assert {"Attention"}.isdisjoint(operators(model))
    np.testing.assert_allclose(run_reference(model, given)[0], before, atol=1e-5)


def test_without_a_mask(rng):
    model = graph(last="")
    given = feed(rng)
    before = run_reference(model, given)[0]
    assert spell_out_softcaps(model) == 1
    np.testing.assert_allclose(run_reference(model, given)[0], before, atol=1e-5)


def test_names_and_scopes_stay(rng):
    model = graph()
    next(iter(model.graph)).metadata_props["scope"] = "layers.0"
    spell_out_softcaps(model)
    (output,) = model.graph.outputs
    assert (output.name, output.dtype) == ("y", ir.DataType.FLOAT)
    assert output.producer().metadata_props == {"scope": "layers.0"}


@pytest.mark.parametrize(
    ("attributes", "last"),
    [
        ("scale = 0.5", "mask"),
        ("softcap = 0.0", "mask"),
        ("softcap = 2.5, is_causal = 1", "mask"),
        ("softcap = 2.5", "mask, k, v"),
    ],
    ids=["no cap", "cap of 0", "causal", "a cache"],
)
def test_others_are_left_alone(attributes, last):
    model = graph(attributes, last=last)
    assert spell_out_softcaps(model) == 0
    assert operators(model) == ["Attention"]


@pytest.mark.parametrize("type_", ["float", "float16", "bfloat16"])
def test_an_engine_is_built_of_it(tmp_path, type_):
    pytest.importorskip(MODULES[SM89.target], reason="needs TensorRT-RTX")
    dtype = DType.FLOAT32 if type_ == "float" else DType(type_)
    signature = Signature(
        inputs=(
            TensorSpec("q", dtype, ("b", 4, "s", 8)),
            TensorSpec("k", dtype, ("b", 2, "t", 8)),
            TensorSpec("v", dtype, ("b", 2, "t", 8)),
            TensorSpec("mask", DType.BOOL, ("b", 1, "s", "t")),
        ),
        outputs=(TensorSpec("y", dtype, ("b", 4, "s", 8)),),
        ranges=dict.fromkeys(("b", "s", "t"), ShapeRange(1, 4, 8)),
    )
    model = graph(type_=type_)
    bundle = write_bundle(tmp_path / "capped", ir.to_proto(model), signature=signature)
    engine = build_engine(bundle, SM89)
    assert (engine.build.attention, engine.build.spelled_out) == (0, 1)
    assert len(engine.plan) > 10_000


def pair(type_="float", keys="k", attributes="", query="p"):
    """Two attentions; the second one has ``query``, of ``p`` and ``q``, and ``keys``."""
    tensor = f"{type_}[b, 4, s, 8]"
    return graph_of(
        f"g ({tensor} q, {tensor} k, {tensor} l, {tensor} v) => ({tensor} y, {tensor} z) {{\n"
        f"  p = Neg(q)\n  y = Attention{attributes}(q, k, v)\n"
        f"  z = Attention{attributes}({query}, {keys}, v)\n}}"
    )


SHARED = [{}, {"query": "q", "keys": "l"}]


@pytest.mark.parametrize("shared", SHARED, ids=["keys", "query"])
def test_inputs_of_an_earlier_one_keep_the_numbers(rng, shared):
    model = pair(**shared)
    given = {name: rng.normal(size=(2, 4, 5, 8)).astype(np.float32) for name in "qklv"}
    before = run_reference(model, given)
    assert spell_out_shared_inputs(model) == 1
    assert operators(model).count("Attention") == 1
    for found, expected in zip(run_reference(model, given), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [("float", "l"), ("float", "k", "<is_causal = 1>")],
    ids=["other keys", "causal"],
)
def test_attentions_that_may_stay(arguments):
    assert spell_out_shared_inputs(pair(*arguments)) == 0


@pytest.mark.parametrize(
    ("dtype", "type_"), [(DType.FLOAT32, "float"), (DType.BFLOAT16, "bfloat16")], ids=str
)
@pytest.mark.parametrize("shared", SHARED, ids=["keys", "query"])
def test_tensorrt_builds_shared_inputs(tmp_path, dtype, type_, shared):
    """It ends its process otherwise; once it does not, the pass may go."""
    pytest.importorskip(MODULES[SM89.target], reason="needs TensorRT-RTX")
    shape = ("b", 4, "s", 8)
    signature = Signature(
        tuple(TensorSpec(name, dtype, shape) for name in "qklv"),
        tuple(TensorSpec(name, dtype, shape) for name in "yz"),
        {"b": ShapeRange(1, 1, 2), "s": ShapeRange(1, 8, 16)},
    )
    bundle = write_bundle(
        tmp_path / "shared", ir.to_proto(pair(type_, **shared)), signature=signature
    )
    assert build_engine(bundle, SM89).build.spelled_out == 1

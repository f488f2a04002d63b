import numpy as np
import onnx_ir as ir
import pytest
from onnx.checker import check_model
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from support.graphs import graph_of, operators, run_ort, run_reference

from tfx.export.passes.attention import expand_masks, expand_rotary_caches


def attention(
    mask: str | None,
    *,
    query: str = "batch, 2, queries, 4",
    attributes: str = "",
    kind: str = "float",
):
    """``y = Attention(q, k, v, mask)``; k and v have 7 keys."""
    rank3 = query.count(",") == 2
    key = "batch, 7, 8" if rank3 else "batch, 2, 7, 4"
    declared = f", {kind}[{mask}] mask" if mask else ""
    given = ", mask" if mask else ""
    return graph_of(
        f"g (float[{query}] q, float[{key}] k, float[{key}] v{declared}) => (float[{query}] y) "
        f"{{ y = Attention{attributes}(q, k, v{given}) }}"
    )


def feed_of(rng, mask_shape, *, query=(3, 2, 5, 4), key=(3, 2, 7, 4), boolean=False):
    arrays = {"q": query, "k": key, "v": key}
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    hidden = rng.random(mask_shape) < 0.3
    hidden[..., 0] = False  # every query keeps a key
    feed["mask"] = ~hidden if boolean else np.where(hidden, np.float32(-1e4), np.float32(0))
    return feed


@pytest.mark.parametrize("boolean", [False, True], ids=["added", "boolean"])
@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        ("batch, 1, 1, 7", (3, 1, 1, 7)),
        ("1, 1, 1, 7", (1, 1, 1, 7)),
        ("batch, 2, 1, 7", (3, 2, 1, 7)),
        ("1, 7", (1, 7)),
    ],
)
def test_fires_and_keeps_the_numbers(mask, shape, boolean, rng):
    model = attention(mask, kind="bool" if boolean else "float")
    feed = feed_of(rng, shape, boolean=boolean)
    (expected,) = run_reference(model, feed)

    assert expand_masks(model) == 1

    assert operators(model) == ["Shape", "Concat", "Expand", "Attention"]
    check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run_reference(model, feed)[0], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run_ort(model, feed)[0], expected, rtol=1e-5, atol=1e-5)


def test_what_it_is_for_still_stands(rng):
    """ONNX Runtime refuses the mask before; once it does not, the pass can go."""
    model = attention("batch, 1, 1, 7")
    with pytest.raises(Fail, match="inconsistent q_sequence_length"):
        run_ort(model, feed_of(rng, (3, 1, 1, 7)))


def test_queries_of_rank_3(rng):
    heads = "<q_num_heads = 2, kv_num_heads = 2>"
    model = attention("batch, 1, 1, 7", query="batch, queries, 8", attributes=heads)
    feed = feed_of(rng, (3, 1, 1, 7), query=(3, 5, 8), key=(3, 7, 8))
    (expected,) = run_reference(model, feed)

    assert expand_masks(model) == 1

    np.testing.assert_allclose(run_ort(model, feed)[0], expected, rtol=1e-5, atol=1e-5)


def test_one_expand_for_a_mask_of_many_layers(rng):
    model = graph_of(
        "g (float[b, 2, n, 4] q, float[b, 1, 1, n] mask) => (float[b, 2, n, 4] y) {"
        "  x = Attention(q, q, q, mask)"
        "  y = Attention(x, x, q, mask)"
        "}"
    )
    x = rng.normal(size=(3, 2, 5, 4)).astype(np.float32)
    mask = np.zeros((3, 1, 1, 5), np.float32)
    mask[1, ..., 3:] = -1e4
    (expected,) = run_reference(model, {"q": x, "mask": mask})

    assert expand_masks(model) == 1

    assert operators(model).count("Expand") == 1
    np.testing.assert_allclose(
        run_ort(model, {"q": x, "mask": mask})[0], expected, rtol=1e-5, atol=1e-5
    )


def test_one_mask_for_queries_of_two_lengths():
    model = graph_of(
        "g (float[b, 2, n, 4] q, float[b, 2, m, 4] p, float[b, 2, 7, 4] k, float[b, 1, 1, 7] mask)"
        " => (float[b, 2, n, 4] y, float[b, 2, m, 4] z) {"
        "  y = Attention(q, k, k, mask)"
        "  z = Attention(p, k, k, mask)"
        "}"
    )
    assert expand_masks(model) == 2


@pytest.mark.parametrize(
    ("mask", "query"),
    [
        ("batch, 1, queries, 7", "batch, 2, queries, 4"),
        ("batch, 1, 5, 7", "batch, 2, 5, 4"),
        ("batch, 1, 1, 7", "batch, 2, 1, 4"),
        ("7", "batch, 2, queries, 4"),
        (None, "batch, 2, queries, 4"),
    ],
    ids=["full", "full and fixed", "one query", "keys only", "no mask"],
)
def test_near_misses_are_untouched(mask, query):
    model = attention(mask, query=query)
    before = ir.to_proto(model).SerializeToString()
    assert expand_masks(model) == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_attention_of_another_domain_is_untouched():
    model = attention("batch, 1, 1, 7")
    for node in model.graph:
        node.domain = "com.example"
    assert expand_masks(model) == 0


# rotary embeddings


def rotary(cache="1, n, 2", *, x="b, 2, n, 4", more=""):
    positions = ", int64[b, n] p" if more else ""
    return graph_of(
        f"g (float[{x}] x, float[{cache}] cos, float[{cache}] sin{positions}) => (float[{x}] y)"
        f" {{ y = RotaryEmbedding(x, cos, sin{more}) }}"
    )


def rotary_feed(rng, batch=3):
    angles = rng.normal(size=(1, 5, 2)).astype(np.float32)
    x = rng.normal(size=(batch, 2, 5, 4)).astype(np.float32)
    return {"x": x, "cos": np.cos(angles), "sin": np.sin(angles)}


def test_rotary_caches_get_the_batch(rng):
    model, feed = rotary(), rotary_feed(rng)
    full = {
        name: np.broadcast_to(a, (3, *a.shape[1:])) if name != "x" else a
        for name, a in feed.items()
    }
    (expected,) = run_reference(rotary("b, n, 2"), full)

    assert expand_rotary_caches(model) == 2

    check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run_ort(model, feed)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: rotary("b, n, 2"),
        lambda: rotary(x="1, 2, n, 4"),
        lambda: rotary("9, 2", more=", p"),
    ],
    ids=["full", "one row", "positions"],
)
def test_other_rotary_caches_are_untouched(model):
    model = model()
    assert expand_rotary_caches(model) == 0
    assert operators(model) == ["RotaryEmbedding"]

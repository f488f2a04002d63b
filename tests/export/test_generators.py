"""Causal language models exported with their cache: same logits step by step, whatever padding."""

import numpy as np
import pytest
import transformers
from support.checkpoints import write_checkpoint
from support.generators import FAMILIES, SHARED, write_generator

import tfx
from tfx.errors import SourceError
from tfx.export.pipeline import export_bundles
from tfx.recipe import Changes, ExportRecipe
from tfx.runtime.generation.kv_cache import cache_specs, stepwise, text_signature, whole_feed
from tfx.runtime.parity import check_bundle


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = write_generator(folder / "source", request.param)
    recipe = ExportRecipe(max_sequence=24)
    (written,) = export_bundles(str(source), folder / "bundle", recipe, cache=None)
    return written


def test_proof_reads_step_by_step_with_padding(bundle):
    names = {check.name for check in bundle.manifest.parity.checks}
    assert {"right-padded = unpadded", "left-padded = unpadded", "batch = single"} <= names
    assert bundle.manifest.parity.passed
    assert any("padded left" in shape for shape in bundle.manifest.parity.shapes)
    assert bundle.manifest.facts["attention"] == 2


def test_one_scatter_writes_each_half_of_a_layers_cache(bundle):
    import onnx_ir as ir

    graph = ir.load(bundle.model).graph
    written = {}
    for node in graph:
        if node.op_type == "ScatterND":
            written[node.inputs[0].name] = node.outputs[0]
    assert sorted(written) == sorted(spec.name for spec in cache_specs(bundle.manifest.signature))
    assert all(value.is_graph_output() for value in written.values())


def test_no_attention_scales_its_scores(bundle):
    """ONNX Runtime copies the keys of those that do, in every step."""
    import onnx_ir as ir

    attentions = [node for node in ir.load(bundle.model).graph if node.op_type == "Attention"]
    assert [node.attributes.get_float("scale", 0.0) for node in attentions] == [1.0, 1.0]


def test_check_repeats_the_proof(bundle):
    assert check_bundle(bundle, backend="onnxruntime").passed


def test_torch_runs_the_same_signature(bundle, rng):
    signature = bundle.manifest.signature
    ids = rng.integers(4, 60, (2, 7))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feed["attention_mask"][1, :3] = 0
    found = {}
    for backend in ("torch", "onnxruntime"):
        with tfx.open_session(bundle, backend=backend) as session:
            whole = session.predict(whole_feed(signature, feed))
            steps = stepwise(session.predict, signature, 4)(feed)
        # of what the mask hides nothing is said
        kept = feed["attention_mask"].astype(bool)
        np.testing.assert_allclose(steps["logits"][kept], whole["logits"][kept], atol=1e-4)
        found[backend] = steps["logits"][kept]
    np.testing.assert_allclose(found["onnxruntime"], found["torch"], atol=1e-4)


def test_max_seq_bounds_the_cache(bundle):
    ranges = bundle.manifest.signature.ranges
    assert {ranges[axis].max for axis in ("sequence", "capacity", "kept")} == {24}
    assert text_signature(bundle.manifest.signature).ranges["sequence"].max == 24


def test_a_cache_of_something_else_is_refused(tmp_path):
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)
    source = write_checkpoint(tmp_path / "mamba", transformers.MambaForCausalLM, config)
    with pytest.raises(SourceError, match="MambaForCausalLM takes no past_key_values") as caught:
        export_bundles(str(source), tmp_path / "bundle", cache=True)
    assert caught.value.hint == "Export it for one pass: --no-cache."


def test_a_state_that_is_no_cache_is_refused(tmp_path):
    config = transformers.Qwen3NextConfig(
        num_experts=2, head_dim=8, **(SHARED | {"num_hidden_layers": 4})
    )
    source = tmp_path / "source"
    source.mkdir()
    config.architectures = ["Qwen3NextForCausalLM"]
    config.save_pretrained(source)
    with pytest.raises(SourceError, match="keeps LinearAttentionLayer, expected keys and values"):
        export_bundles(str(source), tmp_path / "bundle", cache=True)


def test_attention_maps_and_a_cache_exclude_each_other(tmp_path):
    source = write_generator(tmp_path / "source")
    recipe = ExportRecipe(changes=Changes(attentions=True))
    with pytest.raises(SourceError, match="gives attention maps in one pass only"):
        export_bundles(str(source), tmp_path / "bundle", recipe, cache=True)


def test_an_encoder_has_no_cache(tmp_path):
    config = transformers.BertConfig(**{name: SHARED[name] for name in ("vocab_size",)})
    source = tmp_path / "source"
    source.mkdir()
    config.architectures = ["BertModel"]
    config.save_pretrained(source)
    with pytest.raises(SourceError, match="BertModel does not generate text"):
        export_bundles(str(source), tmp_path / "bundle", cache=True)


def test_no_cache_is_a_graph_of_one_pass(tmp_path):
    source = write_generator(tmp_path / "source")
    (bundle,) = export_bundles(str(source), tmp_path / "bundle", cache=False)
    assert not cache_specs(bundle.manifest.signature)
    assert bundle.manifest.signature.outputs[0].shape == ("batch", "sequence", 64)

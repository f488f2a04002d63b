import pytest
from support.bundles import TEXT_SIGNATURE, text_graph, write_bundle
from support.proofs import write_proven_bundle

from tfx.bundle import open_bundle
from tfx.errors import BundleError, FeedError
from tfx.runtime.parity import check_bundle
from tfx.signature import ShapeRange, Signature


def test_check_bundle(tmp_path):
    bundle = write_proven_bundle(tmp_path / "tiny")
    report = check_bundle(bundle, threads=1)
    assert report.passed
    assert report.reference == "stored outputs of torch 2.13.0 eager float32"
    assert report.backend.startswith("onnxruntime ")
    assert report.shapes == ("batch 2, sequence 5", "batch 3, sequence 9")
    assert report.max_abs < 1e-6


def test_check_bundle_of_another_graph(tmp_path):
    report = check_bundle(write_proven_bundle(tmp_path / "tiny", text_graph(seed=1)), threads=1)
    assert not report.passed
    assert report.checks[0].error > 0.1


def test_check_bundle_without_a_proof(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    with pytest.raises(BundleError, match=r"tiny carries no proof: it has no proof\.npz$"):
        check_bundle(bundle)


def test_check_bundle_whose_feeds_do_not_fit(tmp_path):
    narrow = Signature(
        TEXT_SIGNATURE.inputs, TEXT_SIGNATURE.outputs, {"batch": ShapeRange(1, 1, 2)}
    )
    write_proven_bundle(tmp_path / "tiny", signature=narrow)
    with pytest.raises(FeedError, match=r"axis 'batch' is 3, outside 1\.\.2"):
        check_bundle(open_bundle(tmp_path / "tiny"), threads=1)

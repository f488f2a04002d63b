import pytest
from support.bundles import write_bundle

import tfx
from tfx.errors import BackendError, BundleError
from tfx.runtime import session as module
from tfx.runtime.verification import Verification


def damage(bundle):
    data = bundle.model.read_bytes()
    bundle.model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_whole_bundle_passes(tmp_path):
    Verification(write_bundle(tmp_path / "b")).finish()


def test_what_is_damaged_is_said_where_it_is_waited_for(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    damage(bundle)
    verification = Verification(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx: sha256 is not the one in tfx\.json"):
        verification.finish()


def test_nothing_is_loaded_before_it_is_verified(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    damage(bundle)

    class Eager:
        def load(self, bundle, options):
            pytest.fail("loaded a damaged bundle")

    monkeypatch.setattr(module, "get_backend", lambda name: Eager())
    with pytest.raises(BundleError, match="is damaged"):
        tfx.open_session(bundle.path, backend="onnxruntime")


def test_damage_is_said_before_a_backend_that_is_missing(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    with pytest.raises(BackendError, match="no backend called 'none'"):
        tfx.open_session(bundle.path, backend="none")
    damage(bundle)
    with pytest.raises(BundleError, match="is damaged"):
        tfx.open_session(bundle.path, backend="none")


def test_an_opened_bundle_is_not_verified_again(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "b")
    monkeypatch.setattr("tfx.bundle.sha256_of", lambda path: pytest.fail(f"read {path}"))
    tfx.open_session(bundle, backend="onnxruntime").close()
    tfx.open_session(bundle.path, backend="onnxruntime", verify=False).close()

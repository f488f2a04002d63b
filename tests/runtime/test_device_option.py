"""--device of the commands that run a bundle: the backend takes or refuses it."""

import numpy as np
import pytest
from click.testing import CliRunner
from support.proofs import text_cases, write_proven_bundle

from tfx.cli import main


@pytest.fixture
def arguments(tmp_path):
    """What each command takes beside the device."""
    bundle = write_proven_bundle(tmp_path / "b")
    (case,) = text_cases(np.random.default_rng(0), ((2, 5),))
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, **case.feed)
    texts = tmp_path / "texts.csv"
    texts.write_text("sentence,label\nGood film,1\n")
    return {
        "predict": [str(bundle.path), "--input", str(arrays)],
        "evaluate": [str(bundle.path), "--eval", str(texts)],
        "check": [str(bundle.path)],
    }


@pytest.mark.parametrize("command", ["predict", "evaluate", "check"])
def test_a_device_is_the_backends_to_take_or_refuse(arguments, command):
    result = CliRunner().invoke(main, [command, *arguments[command], "--device", "npu:0"])
    assert result.exit_code == 1
    assert "onnxruntime runs on cpu and cuda, not on 'npu:0'" in result.output
    assert "Use device='cpu' or device='cuda:0'." in result.output


def test_the_cpu_by_name(arguments):
    result = CliRunner().invoke(main, ["predict", *arguments["predict"], "--device", "cpu"])
    assert result.exit_code == 0, result.output

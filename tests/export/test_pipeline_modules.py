"""Hand-written modules: axes, names of outputs, weights beside the graph."""

import os

import numpy as np
import pytest
import torch
from support import modules
from support.exports import assert_portable, count
from torch import nn

import tfx
from tfx.errors import BackendError, ExportError
from tfx.export.pipeline import export_bundle
from tfx.recipe import ExportRecipe, SourceKind


def test_padding_mask_with_named_axes(padded):
    assert_portable(padded)
    signature = padded.manifest.signature
    assert [str(spec) for spec in (*signature.inputs, *signature.outputs)] == [
        "x: float32[batch, sequence, 16]",
        "padding_mask: bool[batch, sequence]",
        "output: float32[batch, sequence, 16]",
    ]
    assert padded.manifest.source.kind is SourceKind.FACTORY
    assert padded.manifest.source.seed == 3
    assert padded.manifest.task == ""


def test_padding_mask_with_inferred_axes(factories, tmp_path):
    bundle = export_bundle(f"{factories}:encoder", tmp_path / "to")
    assert_portable(bundle)
    assert [spec.shape for spec in bundle.manifest.signature.inputs] == [
        ("batch", "sequence", 16),
        ("batch", "sequence"),
    ]
    assert "axis 2 of x is fixed at 16 by the model" in bundle.manifest.notes


def test_source_and_target_have_their_own_lengths(tmp_path):
    torch.manual_seed(0)
    examples = {
        "src": torch.randn(2, 7, 16),
        "tgt": torch.randn(2, 5, 16),
        "tgt_mask": modules.causal_mask(5),
    }
    bundle = export_bundle(modules.Seq2Seq(), tmp_path / "to", examples=examples)
    assert_portable(bundle)
    shapes = {spec.name: spec.shape for spec in bundle.manifest.signature.inputs}
    assert shapes["src"] == ("batch", "sequence", 16)
    assert shapes["tgt"][0] == "batch"
    assert shapes["tgt"][1] != "sequence"
    assert shapes["tgt_mask"] == (shapes["tgt"][1], shapes["tgt"][1])


def test_attention_of_ones_own_in_memory(tmp_path):
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 1, 5)
    mask[1, ..., 3:] = -1e9
    bundle = export_bundle(
        modules.SelfAttention(), tmp_path / "to", examples=(torch.randn(2, 5, 16), mask)
    )
    assert_portable(bundle)
    assert count(bundle, "Attention") == 1
    with pytest.raises(BackendError, match="exported from a module in memory"):
        tfx.open_session(bundle, backend="torch")


@pytest.mark.parametrize(
    ("module", "outputs"),
    [
        (modules.ManyOutputs, ["logits", "states.0", "states.1"]),
        (modules.Pair, ["output.0", "output.1"]),
        (lambda: nn.Linear(4, 3), ["output"]),
    ],
    ids=["mapping", "tuple", "tensor"],
)
def test_names_of_outputs(module, outputs, tmp_path):
    bundle = export_bundle(module(), tmp_path / "to", examples=torch.randn(3, 4))
    assert [spec.name for spec in bundle.manifest.signature.outputs] == outputs
    with tfx.open_session(bundle, threads=1) as session:
        assert list(session.predict({next(iter(session.signature.inputs)).name: _rows(4)})) == (
            outputs
        )


def _rows(width):
    return np.ones((2, width), np.float32)


def test_axis_the_module_fixes(tmp_path):
    x = torch.randn(2, 6, 4)
    bundle = export_bundle(modules.FixedSize(), tmp_path / "guessed", examples=x)
    assert bundle.manifest.signature.inputs[0].shape == ("batch", 6, 4)
    with pytest.raises(ExportError, match=r"x: axis 1 \(sequence\) is fixed at 6"):
        export_bundle(
            modules.FixedSize(),
            tmp_path / "asked",
            ExportRecipe(dynamic={"x": ("batch", "sequence", "")}),
            examples=x,
        )
    assert os.listdir(tmp_path) == ["guessed"]


def test_module_that_branches_on_values(tmp_path):
    with pytest.raises(ExportError, match=r"^PyTorch cannot trace the model: ") as caught:
        export_bundle(modules.Branching(), tmp_path / "to", examples=torch.ones(2, 3))
    assert "(modules.py, line " in str(caught.value)
    assert str(caught.value).endswith(": return x * 2 if x.sum() > 0 else x - 1)")
    assert caught.value.hint.startswith("Compute both sides and choose with torch.where; ")
    assert os.listdir(tmp_path) == []


class Noisy(nn.Module):
    """Never gives the same twice."""

    def forward(self, x):
        return x + torch.randn_like(x)


def test_module_that_draws_random_numbers(tmp_path):
    with pytest.raises(ExportError) as caught:
        export_bundle(Noisy(), tmp_path / "to", examples=torch.ones(2, 3))
    assert str(caught.value) == (
        "the model draws random numbers (RandomNormalLike): no outputs can be compared"
    )
    assert caught.value.hint == "Take them as an input, or leave them out in eval mode."
    assert os.listdir(tmp_path) == []


class Patches(nn.Module):
    """A position for each of 4 x 4 patches, as a ViT has; tracing lets height and width vary."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 16, 8))

    def forward(self, images):
        return self.patches(images).flatten(2).transpose(1, 2) + self.positions


def test_size_that_only_the_module_refuses(tmp_path):
    bundle = export_bundle(Patches(), tmp_path / "m", examples=torch.randn(2, 3, 16, 16))
    assert bundle.manifest.signature.inputs[0].shape == ("batch", 3, 16, 16)
    assert bundle.manifest.notes[0] == "axis 1 of images is fixed at 3 by the model"
    for axis, note in zip((2, 3), bundle.manifest.notes[1:], strict=True):
        assert note.startswith(
            f"axis {axis} of images is fixed at 16, the model fails on others: The size of tensor"
        )
    assert bundle.manifest.parity.passed


class Counting(nn.Module):
    """Gives a number, not a tensor."""

    def forward(self, x):
        return len(x)


class Mixed(nn.Module):
    """Gives a tensor, and beside it a number, a name and nothing."""

    def forward(self, x):
        return {"y": x + 1, "extra": (0.5, "a name", None)}


def test_what_is_no_tensor_is_left_out_and_said(tmp_path):
    bundle = export_bundle(Mixed(), tmp_path / "m", examples={"x": torch.randn(2, 5)})
    assert [spec.name for spec in bundle.manifest.signature.outputs] == ["y"]
    said = [note for note in bundle.manifest.notes if "no tensor" in note]
    assert said == [
        "extra.0 is no tensor (float) and left out: a graph gives tensors only",
        "extra.1 is no tensor (str) and left out: a graph gives tensors only",
    ]


def test_module_that_returns_no_tensor(tmp_path):
    with pytest.raises(ExportError, match=r"^the model returns no tensor, so there is nothing"):
        export_bundle(Counting(), tmp_path / "to", examples=torch.ones(2, 5))
    assert os.listdir(tmp_path) == []


def test_module_that_fails_on_its_examples(tmp_path):
    with pytest.raises(ExportError, match=r"^the model fails on its example inputs: mat1 and mat2"):
        export_bundle(nn.Linear(4, 3), tmp_path / "to", examples=torch.ones(2, 5))
    assert os.listdir(tmp_path) == []


def test_named_axes_are_not_for_transformers_models(encoder_folder, tmp_path):
    with pytest.raises(ExportError, match=r"^--dynamic is for hand-written modules") as caught:
        export_bundle(
            str(encoder_folder), tmp_path / "to", ExportRecipe(dynamic={"input_ids": ("b", "s")})
        )
    assert caught.value.hint == "Leave it out; bound the axes with --max-batch and --max-seq."

import numpy as np
import onnx
import pytest

from tfx.dtypes import DType
from tfx.errors import SignatureError


@pytest.mark.parametrize("dtype", DType)
def test_names_of_every_library_agree(dtype):
    assert dtype.numpy.name == dtype.value
    assert dtype.numpy == onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx)
    assert DType.from_onnx(dtype.onnx) is dtype
    assert DType.parse(dtype.numpy) is dtype
    assert DType.parse(f"torch.{dtype.value}") is dtype


@pytest.mark.parametrize("dtype", DType)
def test_torch_has_a_type_of_that_name(dtype):
    torch = pytest.importorskip("torch")
    assert DType.parse(getattr(torch, dtype.value)) is dtype
    assert torch.empty(1, dtype=getattr(torch, dtype.value)).element_size() == dtype.itemsize


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(DType.BOOL, 1), (DType.FLOAT8_E4M3, 1), (DType.BFLOAT16, 2), (DType.INT64, 8)],
)
def test_itemsize_is_in_bytes(dtype, size):
    assert dtype.itemsize == size


def test_floating_types_are_those_that_can_be_nan():
    for dtype in DType:
        value = np.array(1).astype(dtype.numpy)
        assert dtype.is_floating == np.issubdtype(value.dtype, np.floating) or (
            dtype in (DType.BFLOAT16, DType.FLOAT8_E4M3)
        )


@pytest.mark.parametrize("name", ["complex64", "str", "torch.qint8", ""])
def test_unsupported_name(name):
    with pytest.raises(SignatureError, match="unsupported dtype") as caught:
        DType.parse(name)
    assert caught.value.hint.startswith("Use one of: bool, uint8, ")


def test_unsupported_onnx_code():
    with pytest.raises(SignatureError, match="unsupported ONNX data type code 8"):
        DType.from_onnx(onnx.TensorProto.STRING)

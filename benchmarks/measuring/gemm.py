"""One matrix product, as each engine here runs it at its best: weights packed, nothing copied."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.dtypes import DType
from tfx.errors import BackendError
from tfx.extras import need
from tfx.runtime.backends import onnxruntime_settings, openvino
from tfx.runtime.backends.torch_eager import BFLOAT16_FLAGS
from tfx.runtime.cpus import read_cpu

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Size:
    """``[m, k] @ [k, n]``.

    Attributes:
        m: Rows of the activations.
        k: What is summed over.
        n: Columns of the weights.
    """

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"

    @property
    def flops(self) -> int:
        """A multiplication and an addition are two."""
        return 2 * self.m * self.k * self.n


def torch_product(dtype: DType, size: Size, threads: int) -> Call:
    """``torch.matmul`` into a tensor that is there.

    Raises:
        BackendError: If PyTorch is missing, or the CPU has no such products.
    """
    torch = need("torch")
    if dtype is DType.BFLOAT16 and not BFLOAT16_FLAGS & read_cpu().flags:
        raise BackendError("this CPU multiplies no bfloat16", hint="Leave bfloat16 out.")
    kind = {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}[dtype]
    torch.set_num_threads(threads)
    left = torch.rand(size.m, size.k).to(kind)
    right = torch.rand(size.k, size.n).to(kind)
    out = torch.empty(size.m, size.n, dtype=kind)

    def call() -> None:
        with torch.inference_mode():
            torch.matmul(left, right, out=out)

    return call


def onnxruntime_product(dtype: DType, size: Size, threads: int) -> Call:
    """A ``MatMul``; of integers, what ONNX Runtime makes of it with its dequantization.

    Raises:
        BackendError: If ONNX Runtime is missing.
    """
    ort = need("onnxruntime")
    settings = onnxruntime_settings.settings_of(ort, threads)
    session = ort.InferenceSession(
        product_model(dtype, size), settings, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    given = ort.OrtValue.ortvalue_from_numpy(activations(dtype, size))
    out = ort.OrtValue.ortvalue_from_numpy(np.empty((size.m, size.n), np.float32))
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", out)
    return functools.partial(_run_bound, session, binding, (given, out))


def _run_bound(session: Any, binding: Any, held: object) -> None:
    session.run_with_iobinding(binding)  # which has the addresses of what is held, and no more


def openvino_product(dtype: DType, size: Size, threads: int) -> Call:
    """A ``MatMul`` compiled in the type that was asked for.

    It multiplies integers only where it finds their quantization in the graph: one pass over the
    activations that is timed too.

    Raises:
        BackendError: If OpenVINO is missing, or multiplies in another type.
    """
    ov = need("openvino")
    core = ov.Core()
    floats = dtype if dtype.is_floating else DType.FLOAT32
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if openvino.CAPABILITIES[floats] not in able:
        raise BackendError(f"this CPU multiplies no {floats}", hint="Leave this precision out.")
    model = core.read_model(product_model(dtype, size, quantize=True))
    compiled = core.compile_model(model, "CPU", openvino.settings_of(threads, floats))
    products = openvino.products_of(compiled)
    if set(products) != {dtype}:
        raise BackendError(
            f"openvino multiplies in {', '.join(products) or 'no product'}",
            hint="Leave this precision out.",
        )
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(activations(DType.FLOAT32, size)))

    def call() -> None:
        request.start_async()
        request.wait()

    return call


def activations(dtype: DType, size: Size) -> np.ndarray:
    """``[m, k]``: float32, or for int8 uint8, as quantized activations are on a CPU."""
    rng = np.random.default_rng(0)
    if dtype is DType.INT8:
        return rng.integers(0, 256, (size.m, size.k), np.uint8)
    return rng.random((size.m, size.k), np.float32)


def product_model(dtype: DType, size: Size, *, quantize: bool = False) -> bytes:
    """An ONNX model ``y = x @ weights``; of int8 with a ``DequantizeLinear`` on both sides.

    Args:
        dtype: Of the product.
        size: Of it.
        quantize: Of int8, take float32 from 0 to 1, and quantize it first.
    """
    onnx = need("onnx")
    helper, from_array = need("onnx.helper"), need("onnx.numpy_helper").from_array
    rng = np.random.default_rng(1)
    kinds = onnx.TensorProto
    nodes, constants = [], []
    if dtype is DType.INT8:
        weights = rng.integers(-127, 128, (size.k, size.n), np.int8)
        constants = [
            from_array(np.float32(1 / 255), "x_scale"),
            from_array(np.uint8(0 if quantize else 128), "x_zero"),
            from_array(np.float32(1 / 127), "w_scale"),
            from_array(np.int8(0), "w_zero"),
        ]
        if quantize:
            nodes.append(
                helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_integers"])
            )
        for name, integers in (("x", "x_integers" if quantize else "x"), ("w", "w")):
            given = [integers, f"{name}_scale", f"{name}_zero"]
            nodes.append(helper.make_node("DequantizeLinear", given, [f"{name}_float"]))
        nodes.append(helper.make_node("MatMul", ["x_float", "w_float"], ["y"]))
        kind = kinds.FLOAT if quantize else kinds.UINT8
    else:
        weights = rng.random((size.k, size.n), np.float32)
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
        kind = kinds.FLOAT
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, [size.m, size.k])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, [size.m, size.n])],
        [from_array(weights, "w"), *constants],
    )
    opsets = [helper.make_opsetid("", 21)]
    serialized: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return serialized


# What runs a product in a type. ONNX Runtime has no bfloat16 on CPUs, and PyTorch's product of
# integers is no public function.
PRODUCTS: Mapping[tuple[str, DType], Callable[[DType, Size, int], Call]] = {
    ("torch", DType.FLOAT32): torch_product,
    ("onnxruntime", DType.FLOAT32): onnxruntime_product,
    ("openvino", DType.FLOAT32): openvino_product,
    ("torch", DType.BFLOAT16): torch_product,
    ("openvino", DType.BFLOAT16): openvino_product,
    ("onnxruntime", DType.INT8): onnxruntime_product,
    ("openvino", DType.INT8): openvino_product,
}

"""``python -m tfx.bench.gpu_peak``: the most a GPU multiplies, measured with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from tfx.codec import encode
from tfx.console import emit_json, told_errors
from tfx.extras import need
from tfx.runtime.pytorch.gpu import torch_device

# Square products: the largest is far more than a model has, the smallest near to it.
SIZES = (2048, 4096, 8192, 16384)

# Of each size, so many products at a time, and the fastest of so many times.
CALLS, TIMES = 10, 5


@dataclass(frozen=True, slots=True)
class GpuPeak:
    """The fastest product of float16 matrices.

    Attributes:
        gpu: Its name.
        version: Of PyTorch.
        size: Rows and columns of the product that was fastest.
        tflops: 10^12 operations a second; a multiplication and an addition are two.
    """

    gpu: str
    version: str
    size: int
    tflops: float


def measure_peak(device: str = "cuda:0") -> GpuPeak:
    """Time products of random matrices with the GPU's own clock.

    Raises:
        BackendError: If PyTorch finds no such GPU.
    """
    place = torch_device(device)
    torch = need("torch")
    found = []
    for size in SIZES:
        left, right = (torch.randn(size, size, device=place).half() for _ in range(2))
        seconds = _fastest(torch, lambda left=left, right=right: left @ right)
        found.append((2 * size**3 / seconds / 1e12, size))
    tflops, size = max(found)
    return GpuPeak(torch.cuda.get_device_name(place), torch.__version__, size, tflops)


def _fastest(torch: Any, call: Any) -> float:
    """Seconds of one call."""
    call()
    best = float("inf")
    for _ in range(TIMES):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        for _ in range(CALLS):
            call()
        ended.record()
        ended.synchronize()
        best = min(best, started.elapsed_time(ended) / 1e3 / CALLS)
    return best


@click.command
@click.option("--device", default="cuda:0", show_default=True)
def main(device: str) -> None:
    """Measure the most a GPU multiplies in float16, as JSON."""
    with told_errors():
        emit_json(encode(measure_peak(device)))


if __name__ == "__main__":
    main()

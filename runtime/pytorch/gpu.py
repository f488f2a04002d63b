"""PyTorch on an NVIDIA GPU: find it, run a module there on arrays of the host or of the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from tfx.errors import BackendError
from tfx.extras import need

from ..device_arrays import DeviceArray
from .modules import Call, run_settings
from .names import named_outputs

if TYPE_CHECKING:
    import torch


def torch_device(name: str) -> torch.device:
    """The device called "cpu", "cuda" or "cuda:0".

    Raises:
        BackendError: If there is no such device, or PyTorch cannot use it.
    """
    library = need("torch")
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or not (index or "0").isdecimal()):
        raise BackendError(
            f"torch runs on cpu and cuda, not on {name!r}",
            hint="Use device='cpu' or device='cuda:0'.",
        )
    if name == "cpu":
        return cast("torch.device", library.device("cpu"))
    if library.version.cuda is None:
        raise BackendError(
            f"torch {library.__version__} is built for CPUs alone",
            hint="Install a build of PyTorch for CUDA, or use device='cpu'.",
        )
    if (count := library.cuda.device_count()) <= int(index or "0"):
        raise BackendError(
            f"torch finds {count} GPUs, so there is no {name!r}",
            hint="See what is missing with: tfx doctor",
        )
    return cast("torch.device", library.device("cuda", int(index or "0")))


def run_on_gpu(
    module: Call, feed: Mapping[str, np.ndarray | DeviceArray], device: torch.device
) -> dict[str, torch.Tensor]:
    """Call ``module`` on a GPU; its outputs there, flat and named.

    Products of float32 are done in float32: TF32 is off while it runs.

    Args:
        module: On ``device``, in eval mode, or what calls one.
        feed: Parameter of ``forward`` to array; one on the GPU is read where it is, and must not
            be written to by the module.
        device: The GPU.
    """
    import torch

    with run_settings(None), _without_tf32(), _current(device), torch.inference_mode():
        inputs = {name: _tensor(array, device) for name, array in feed.items()}
        return named_outputs(module(**inputs))


def _tensor(array: np.ndarray | DeviceArray, device: torch.device) -> torch.Tensor:
    import torch

    if isinstance(array, DeviceArray):
        shared: torch.Tensor = torch.from_dlpack(array)
        return shared
    # PyTorch takes no negative strides, nor memory that it may not write to.
    return torch.from_numpy(np.array(array, order="C")).to(device)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    import torch

    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _current(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Make a GPU the current one, as DLPack wants it of whoever shares a tensor."""
    import torch

    if device.type != "cuda":
        return contextlib.nullcontext()
    chosen: contextlib.AbstractContextManager[None] = torch.cuda.device(device)
    return chosen

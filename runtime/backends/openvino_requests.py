"""Runs of a model that OpenVINO compiled: its outputs by their names, its errors as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfx.errors import BackendError, listing
from tfx.signature import Feed, TensorSpec


def run_request(request: Any, feed: Feed, outputs: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Run one request; outputs by name, in memory of their own.

    Args:
        request: OpenVINO's ``InferRequest``, which nothing else runs meanwhile.
        feed: Arrays, which are shared with it.
        outputs: From ``output_ports``.

    Raises:
        BackendError: If OpenVINO fails.
    """
    try:
        # Not infer(): with one thread it swallows what goes wrong and gives stale outputs
        # (openvino 2026.4.1).
        request.start_async(feed, share_inputs=True)
        request.wait()
        return {
            name: np.array(request.get_output_tensor(index).data) for name, index in outputs.items()
        }
    except Exception as error:
        raise BackendError(f"openvino failed: {said(error)}") from error


def said(error: Exception) -> str:
    """Its message on one line, without the lines of OpenVINO's own source that raised it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said) or type(error).__name__


def output_ports(outputs: Sequence[Any], specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Index of each of ``specs`` among a compiled model's outputs; one may have two names.

    Raises:
        BackendError: If one is not there, or has another type.
    """
    indices, problems = {}, []
    for spec in specs:
        ports = [index for index, port in enumerate(outputs) if spec.name in port.get_names()]
        if not ports:
            problems.append(f"{spec.name}: not there")
        elif outputs[ports[0]].get_element_type().to_dtype() != spec.dtype.numpy:
            kind = outputs[ports[0]].get_element_type().get_type_name()
            problems.append(f"{spec.name}: it is {kind}, expected {spec.dtype}")
        else:
            indices[spec.name] = ports[0]
    if problems:
        raise BackendError(listing("openvino gives other outputs than the signature's:", problems))
    return indices

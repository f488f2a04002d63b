"""What stands in for code of DETR and its kin: the same numbers in fewer operators.

Each level of an image's features is handled apart in their code, so that a tiny Deformable DETR
is traced into 1300 operators, each of which costs tracing three times.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np


def frozen_norm(_: Any) -> Any:
    """A batch norm of fixed statistics, spelled out as arithmetic, as the operator it is."""

    def forward(self: Any, x: Any) -> Any:
        import torch

        return torch.nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5
        )

    return forward


def sine_positions(build: Any, *, shift: float = 0.0) -> Any:
    """Positions of pixels as sines and cosines, both axes at once.

    Args:
        build: What it stands in for.
        shift: Taken from a pixel's number before it is normalized: 0.5 for its middle.
    """

    @functools.wraps(build)
    def positions(
        shape: Any,
        device: Any,
        dtype: Any,
        num_position_features: int,
        normalize: bool = False,
        scale: float | None = None,
        temperature: int = 10000,
        mask: Any = None,
    ) -> Any:
        import torch

        options = (num_position_features, normalize, scale, temperature, mask)
        if mask is None:
            return build(shape, device, dtype, *options)
        seen = mask.to(dtype)
        rows, columns = seen.cumsum(1), seen.cumsum(2)
        if normalize:
            rows = (rows - shift) / (rows[:, -1:] + 1e-6) * scale
            columns = (columns - shift) / (columns[:, :, -1:] + 1e-6) * scale
        places = np.arange(num_position_features)
        periods = temperature ** (places // 2 * 2 / num_position_features)
        wave = torch.tensor(periods.tolist(), dtype=dtype).to(device)
        odd = torch.tensor((places % 2 == 1).tolist()).to(device)
        angles = torch.stack([rows, columns], 1)[..., None] / wave
        # Not sin(x + pi / 2): where a line is all padding x is 10^6, and the sum loses its turn.
        waves = torch.where(odd, angles.cos(), angles.sin())
        return waves.permute(0, 1, 4, 2, 3).flatten(1, 2)

    return positions


def sampled_levels(_: Any) -> Any:
    """Deformable attention with heads put in front once, and not at every level."""

    def forward(
        self: Any,
        value: Any,
        value_spatial_shapes: Any,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Any,
        sampling_locations: Any,
        attention_weights: Any,
        im2col_step: int,
    ) -> Any:
        import torch

        batch, length, heads, width = value.shape
        _, queries, _, levels, points, _ = sampling_locations.shape
        images = value.flatten(2).transpose(1, 2).reshape(batch * heads, width, length)
        grids = (2 * sampling_locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
        sizes = [high * wide for high, wide in value_spatial_shapes_list]
        sampled = [
            torch.nn.functional.grid_sample(
                image.reshape(batch * heads, width, high, wide), grid, align_corners=False
            )
            for image, grid, (high, wide) in zip(
                images.split(sizes, dim=2), grids.unbind(1), value_spatial_shapes_list, strict=True
            )
        ]
        weights = attention_weights.transpose(1, 2).reshape(
            batch * heads, 1, queries, levels * points
        )
        output = (torch.cat(sampled, -1) * weights).sum(-1)
        return output.view(batch, heads * width, queries).transpose(1, 2).contiguous()

    return forward


def all_reference_points(get: Any) -> Any:
    """The middles of the pixels of all levels at once; they are constants of an image's size."""

    @functools.wraps(get)
    def points(spatial_shapes_list: Any, valid_ratios: Any, device: Any) -> Any:
        import torch

        if not all(isinstance(size, int) for shape in spatial_shapes_list for size in shape):
            return get(spatial_shapes_list, valid_ratios, device)
        places, sizes, levels = [], [], []
        for level, (high, wide) in enumerate(spatial_shapes_list):
            y, x = np.mgrid[:high, :wide].reshape(2, -1) + 0.5
            places.append(np.stack([x, y], -1))
            sizes.append(np.full((high * wide, 2), (wide, high)))
            levels.append(np.full(high * wide, level))
        place, size = (
            torch.tensor(np.concatenate(one).tolist(), dtype=valid_ratios.dtype).to(device)
            for one in (places, sizes)
        )
        level_of = torch.tensor(np.concatenate(levels).tolist()).to(device)
        centres = place / (valid_ratios.index_select(1, level_of) * size)
        return centres[:, :, None] * valid_ratios[:, None]

    return points

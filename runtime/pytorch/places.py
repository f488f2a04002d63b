"""A cache of places for models that take for granted that one ends with the newest token."""

from __future__ import annotations

import sys
import types
from typing import Any

_LED = "transformers.models.led.modeling_led"
_MPT = "transformers.models.mpt.modeling_mpt"


def mask_by_place(model: Any) -> None:
    """Let LED's decoder see no place of a cache that is not written yet, in place.

    It masks nothing where it reads one token (modeling_led.py, ``LEDDecoder.forward``). Here a
    token sees its own place and those before. Without such a cache nothing changes, and other
    models are left as they are. Until transformers makes this mask as its other models do.
    """
    import torch

    if (cls := getattr(sys.modules.get(_LED), "LEDDecoderAttention", None)) is None:
        return  # nobody has a model of it

    class MaskByPlace(cls):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **options: Any) -> Any:
            cache = getattr(options.get("past_key_values"), "self_attention_cache", None)
            is_own = options.get("key_value_states") is None
            if is_own and (layer := _first_of_places(cache)) is not None:
                columns = torch.arange(layer.keys.shape[2], device=layer.places.device)
                least = torch.finfo(layer.keys.dtype).min
                mask = torch.where(columns <= layer.places[:, None], 0.0, least)
                mask = mask.to(layer.keys.dtype).expand(layer.keys.shape[0], 1, -1, -1)
                options["attention_mask"] = mask
            return super().forward(*args, **options)

    _become(model, cls, MaskByPlace)


def bias_by_key(model: Any) -> None:
    """Let MPT's attention ask no cache for its length, in place.

    It cuts its bias by that length (modeling_mpt.py, ``MptAttention.forward``), in an axis of
    size 1, where nothing can be cut: a length that only a run knows cannot be traced there.
    Without a cache of places nothing changes, and other models are left as they are. Until
    transformers leaves that axis alone.
    """
    if (cls := getattr(sys.modules.get(_MPT), "MptAttention", None)) is None:
        return  # nobody has a model of it

    class BiasByKey(cls):  # type: ignore[misc, valid-type]
        def forward(
            self,
            hidden_states: Any,
            position_bias: Any,
            past_key_values: Any = None,
            attention_mask: Any = None,
        ) -> Any:
            if _first_of_places(past_key_values) is not None:
                past_key_values = types.SimpleNamespace(
                    update=past_key_values.update, get_seq_length=lambda: 0
                )
            return super().forward(hidden_states, position_bias, past_key_values, attention_mask)

    _become(model, cls, BiasByKey)


def _first_of_places(cache: Any) -> Any:
    """The first layer of a cache of places (``cache_of``); None of any other, and of none."""
    layers = getattr(cache, "layers", ())
    return layers[0] if layers and hasattr(layers[0], "places") else None


def _become(model: Any, cls: Any, other: Any) -> None:
    for layer in model.modules():
        if type(layer) is cls:
            layer.__class__ = other

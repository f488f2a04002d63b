"""Causal language models with their cache of keys and values as inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError
from tfx.extras import need

from ..generation.kv_cache import PAST, PRESENT
from .around import around
from .names import forward_names
from .places import bias_by_key
from .windows import count_windows_by_place

if TYPE_CHECKING:
    import torch

NO_CACHE = "Export it for one pass: --no-cache."


def no_cache(config: Any, class_name: str) -> str:
    """Why a class of transformers is no generator (``generator_of``), or ""."""
    transformers = need("transformers")
    cls = getattr(transformers, class_name, None)
    if cls is None or not class_name.endswith(("ForCausalLM", "LMHeadModel")):
        return "does not generate text"
    wanted = ("input_ids", "past_key_values", "logits_to_keep")
    if missing := [name for name in wanted if name not in forward_names(cls)]:
        return f"takes no {' and no '.join(missing)}"
    if other := odd_layers(config):
        return f"keeps {', '.join(other)}, expected keys and values of every token"
    return ""


def odd_layers(config: Any) -> list[str]:
    """Kinds of layers in a model's cache that keep something else than keys and values."""
    caches = need("transformers.cache_utils")
    kinds = {type(layer).__name__ for layer in caches.DynamicCache(config=config).layers}
    plain = {caches.DynamicLayer.__name__, caches.DynamicSlidingWindowLayer.__name__}
    return sorted(kinds - plain)


def generator_of(model: Any) -> torch.nn.Module:
    """A causal language model of transformers as one graph for prefill and for each step.

    It takes

    - ``input_ids``, ``int64[batch, sequence]``: the prompt, or the token chosen last,
    - ``attention_mask``, ``int64[batch, capacity]``: 1 for the places of the cache that hold a
      token, 0 for padding; what it says of places not yet written does not matter,
    - ``cache_position``, ``int64[sequence]``: where in the cache these tokens go, ascending,
    - ``logits_to_keep``, ``int64[kept]``: of which of these tokens logits are wanted,
    - ``past_key_n`` and ``past_value_n``, ``[batch, heads, capacity, head_dim]`` for layer n,

    and returns ``logits``, ``[batch, kept, vocabulary]``, and as ``present_key_n`` and
    ``present_value_n`` the cache with the new tokens written into it. A token sees those before
    it in the cache that the mask does not hide; its position is their number, so padding on
    either side does not move it. A sliding window counts places, as in transformers: with one,
    steps go on behind prompts padded on the left only.

    Raises:
        SourceError: If the model keeps something else than keys and values of every token.
    """
    sizes = cache_sizes(model)
    rows = "position_ids" in forward_names(model)
    count_windows_by_place(model)
    bias_by_key(model)

    class Generator(around()):  # type: ignore[misc]
        main_input_name = "input_ids"

        def forward(
            self,
            input_ids: Any,
            attention_mask: Any,
            cache_position: Any,
            logits_to_keep: Any,
            **past: Any,
        ) -> dict[str, Any]:
            layers = [
                (past[PAST[0].format(layer)], past[PAST[1].format(layer)])
                for layer in range(len(sizes))
            ]
            cache = cache_of(layers, cache_position, attention_mask.shape[1])
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            if rows:
                positions = _positions(attention_mask)
                inputs["position_ids"] = positions.index_select(1, cache_position)
            outputs = self.model(
                **inputs,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
                logits_to_keep=logits_to_keep,
            )
            return {"logits": outputs.logits, **tensors_of(cache.layers, PRESENT)}

    return Generator(model=model)


def reader_of(generator: Any) -> Any:
    """The model in a generator, as a function that reads whole texts without a cache.

    Positions count tokens, as transformers' ``generate`` has them; left alone, models of
    absolute positions (GPT-2) count padding on the left too.
    """
    model = generator.model
    rows = "position_ids" in forward_names(model)

    def read(input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        more = {"position_ids": _positions(attention_mask)} if rows else {}
        outputs = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)
        return {"logits": outputs.logits}

    return read


def _positions(mask: Any) -> Any:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def cache_sizes(model: Any) -> tuple[tuple[int, int, int], ...]:
    """Of each layer's cache: heads, and the sizes of a key and of a value.

    Found by running the model on one token.

    Raises:
        SourceError: If it keeps something else than keys and values of every token.
    """
    import torch

    caches = need("transformers.cache_utils")
    cache = caches.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    require_keys(cache.layers, model)
    return sizes_of(cache.layers)


def require_keys(layers: Sequence[Any], model: Any) -> None:
    """Refuse a cache one of whose layers keeps something else than keys and values.

    Raises:
        SourceError: Naming the first such layer.
    """
    plain = need("transformers.cache_utils").DynamicLayer
    for layer in layers:
        if not isinstance(layer, plain) or layer.keys is None:
            raise SourceError(
                f"{type(model).__name__} keeps {type(layer).__name__}, expected keys and values of "
                "every token",
                hint=NO_CACHE,
            )


def sizes_of(layers: Sequence[Any]) -> tuple[tuple[int, int, int], ...]:
    """Of each layer that keeps keys and values: heads, and the sizes of a key and of a value."""
    return tuple(
        (layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers
    )


def tensors_of(layers: Sequence[Any], names: tuple[str, str]) -> dict[str, Any]:
    """Keys and values of each layer by name, such as ``present_key_0`` of ``PRESENT``."""
    return {
        name.format(number): tensor
        for number, layer in enumerate(layers)
        for name, tensor in zip(names, (layer.keys, layer.values), strict=True)
    }


def cache_of(layers: list[tuple[Any, Any]], positions: Any, capacity: Any) -> Any:
    """Transformers' Cache around tensors of fixed places.

    Args:
        layers: Keys and values of each layer, ``[batch, heads, capacity, head_dim]``.
        positions: Where new tokens are written, ``int64[sequence]``.
        capacity: How many places there are.
    """
    import torch

    caches = need("transformers.cache_utils")

    class Slots(caches.CacheLayerMixin):  # type: ignore[misc, name-defined]
        is_sliding = False
        # As of transformers' static caches: else a step whose mask hides nothing gets none, and
        # reads the places that are not written yet.
        is_compileable = True

        def __init__(self, keys: Any, values: Any) -> None:
            super().__init__()
            self.keys, self.values, self.is_initialized = keys, values, True
            self.places = positions

        def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
            raise AssertionError("it is filled from the start")

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
            batch, heads = key_states.shape[:2]
            # Indices of all leading axes: one ScatterND, which engines do in place.
            places = (
                torch.arange(batch, device=positions.device)[:, None, None],
                torch.arange(heads, device=positions.device)[None, :, None],
                positions[None, None, :],
            )
            self.keys = self.keys.index_put(places, key_states)
            self.values = self.values.index_put(places, value_states)
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[Any, int]:
            return capacity, 0

        def get_seq_length(self) -> Any:
            return positions[0]

        def get_max_length(self) -> int:
            return -1

    return caches.Cache(layers=[Slots(keys, values) for keys, values in layers])

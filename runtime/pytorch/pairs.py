"""Encoder-decoders that generate: the encoder with cross keys, the decoder with its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError
from tfx.extras import need
from tfx.recipe import GENERATING_DECODER, GENERATING_ENCODER

from ..generation.kv_cache import CROSS, PAST, PRESENT
from .around import around
from .generators import (
    NO_CACHE,
    cache_of,
    odd_layers,
    require_keys,
    sizes_of,
    tensors_of,
)
from .names import forward_names
from .places import mask_by_place

if TYPE_CHECKING:
    import torch

# What a class of transformers must take for its decoder to have a cache here.
TAKEN = ("decoder_input_ids", "decoder_attention_mask", "encoder_outputs", "past_key_values")

# Model types whose decoder gives the same with a cache of places.
KNOWN = frozenset(
    (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "led", "longt5"),
        *("m2m_100", "marian", "mbart", "mt5", "mvp", "pegasus", "pegasus_x", "plbart", "t5"),
        *("umt5", "whisper"),
    )
)

# Model types whose decoder does not, and why.
WITHOUT = {
    "fsmt": "masks a target only where it reads the input beside it",
    "nllb-moe": "leaves out what is too much for an expert in all texts of a batch, which is not "
    "so of one read token by token",
    "prophetnet": "reads the first tokens of a text by other code than one more token",
    "switch_transformers": "leaves out what is too much for an expert in a text read at once, and "
    "nothing of one read token by token",
}


def no_pair_cache(config: Any, class_name: str) -> str:
    """Why an encoder-decoder of transformers has no cache (``pair_part_of``), or ""."""
    cls = getattr(need("transformers"), class_name, None)
    if cls is None or not cls.can_generate():
        return "does not generate text"
    if missing := [name for name in TAKEN if name not in forward_names(cls)]:
        return f"takes no {' and no '.join(missing)}"
    if reason := WITHOUT.get(config.model_type):
        return reason
    if config.model_type not in KNOWN:
        return (
            f"is of type {config.model_type}, whose decoder was not tried with places for a cache"
        )
    if other := odd_layers(config):
        return f"keeps {', '.join(other)}, expected keys and values of every token"
    return ""


def pair_part_of(model: Any, part: str) -> torch.nn.Module:
    """One of the two graphs of an encoder-decoder that generates, in eval mode.

    The encoder takes what the model takes and returns ``last_hidden_state`` and, for each layer
    n of the decoder, ``cross_key_n`` and ``cross_value_n``,
    ``[batch, heads, encoder_sequence, head_dim]``: they are of the input alone, so they are made
    once. The decoder takes

    - ``input_ids``, ``int64[batch, sequence]``: where the target begins, or the token chosen last,
    - ``cache_position``, ``int64[sequence]``: where in the cache these tokens go, ascending,
    - ``logits_to_keep``, ``int64[kept]``: of which of these tokens logits are wanted,
    - ``encoder_attention_mask``, ``int64[batch, encoder_sequence]``, where the encoder has a mask,
    - ``past_key_n`` and ``past_value_n``, ``[batch, heads, capacity, head_dim]``, and
    - ``cross_key_n`` and ``cross_value_n``, which it does not give back,

    and returns ``logits``, ``[batch, kept, vocabulary]``, and as ``present_key_n`` and
    ``present_value_n`` the cache with the new tokens written into it. A token sees those before
    it in the cache: targets of a batch begin at one place, and nothing in them is padding.

    Raises:
        SourceError: If there is no such part, or the decoder keeps something else than keys and
            values of every token.
    """
    if part == GENERATING_ENCODER:
        return _encoder(model)
    if part == GENERATING_DECODER:
        return _decoder(model)
    raise SourceError(
        f"no part called {part!r}", hint="Use one of: generator-encoder, generator-decoder."
    )


def pair_sizes(model: Any) -> tuple[tuple[int, int, int], ...]:
    """Of each decoder layer's cache: heads, and the sizes of a key and of a value."""
    import torch

    with torch.no_grad():
        states = torch.zeros(1, 2, model.get_encoder().config.hidden_size)
        return sizes_of(_cross_layers(model, states))


def cross_of(model: Any, states: Any) -> dict[str, Any]:
    """Keys and values that each layer of a model's decoder makes of an encoder's states.

    Args:
        model: An encoder-decoder of transformers.
        states: ``[batch, encoder_sequence, hidden]``.

    Returns:
        ``cross_key_n`` and ``cross_value_n``, ``[batch, heads, encoder_sequence, head_dim]``.
    """
    return tensors_of(_cross_layers(model, states), CROSS)


def _cross_layers(model: Any, states: Any) -> list[Any]:
    """What each layer of the decoder makes of the encoder's states: a cache's layers.

    One token is read with a cache that keeps it. What that token becomes is of no use, and is
    no part of a graph that gives only these.
    """
    import torch

    caches = need("transformers.cache_utils")
    cache = caches.EncoderDecoderCache(caches.DynamicCache(), caches.DynamicCache())
    outputs = need("transformers.modeling_outputs").MoEModelOutput
    model(
        encoder_outputs=outputs(last_hidden_state=states),
        decoder_input_ids=torch.zeros_like(states[:, :1, 0], dtype=torch.long),
        past_key_values=cache,
        use_cache=True,
        return_dict=True,
    )
    own, cross = (one.layers for one in (cache.self_attention_cache, cache.cross_attention_cache))
    require_keys((*own, *cross), model)
    if not own or len(own) != len(cross):
        raise SourceError(
            f"{type(model).__name__} keeps {len(own)} layers of its own tokens and {len(cross)} of "
            "the encoder's, expected as many",
            hint=NO_CACHE,
        )
    return list(cross)


def _encoder(model: Any) -> torch.nn.Module:
    class CrossEncoder(around()):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> dict[str, Any]:
            states = self.encoder(**inputs, return_dict=True).last_hidden_state
            return {"last_hidden_state": states, **cross_of(self.model, states)}

    return CrossEncoder(model=model, encoder=model.get_encoder())


def _decoder(model: Any) -> torch.nn.Module:
    import torch

    mask_by_place(model)
    count = len(pair_sizes(model))
    keeps = "logits_to_keep" in forward_names(model)
    outputs_of_encoder = need("transformers.modeling_outputs").MoEModelOutput
    width = model.get_encoder().config.hidden_size
    # Attention that is spelled out adds its mask to the scores, and wants a row for each text.
    adds = model.config._attn_implementation == "eager"

    class CachedDecoder(around()):  # type: ignore[misc]
        main_input_name = "input_ids"

        def forward(
            self,
            input_ids: Any,
            cache_position: Any,
            logits_to_keep: Any,
            encoder_attention_mask: Any = None,
            **past: Any,
        ) -> dict[str, Any]:
            own, cross = (
                [tuple(past[name.format(layer)] for name in names) for layer in range(count)]
                for names in (PAST, CROSS)
            )
            capacity = own[0][0].shape[2]
            cache = _pair_cache(own, cross, cache_position)
            places = torch.arange(capacity, device=cache_position.device)
            # Of the states only the shape is looked at: keys and values are there.
            states = cross[0][0][:, 0, :, :1].expand(-1, -1, width)
            mask = (places <= cache_position[:, None])[None, None]
            if adds:
                hidden = torch.finfo(states.dtype).min
                mask = torch.where(mask, 0.0, hidden).expand(input_ids.shape[0], -1, -1, -1)
            inputs = {
                "decoder_input_ids": input_ids,
                "decoder_attention_mask": mask,
                "encoder_outputs": outputs_of_encoder(last_hidden_state=states),
            }
            if encoder_attention_mask is not None:
                inputs["attention_mask"] = encoder_attention_mask
            if keeps:
                inputs["logits_to_keep"] = logits_to_keep
            logits = self.model(
                **inputs, past_key_values=cache, use_cache=True, return_dict=True
            ).logits
            return {
                "logits": logits if keeps else logits.index_select(1, logits_to_keep),
                **tensors_of(cache.self_attention_cache.layers, PRESENT),
            }

    return CachedDecoder(model=model)


def _pair_cache(own: list[Any], cross: list[Any], positions: Any) -> Any:
    """Transformers' cache of a decoder: of its own tokens, and of the encoder's, which is whole."""
    caches = need("transformers.cache_utils")
    capacity = own[0][0].shape[2]
    cache = caches.EncoderDecoderCache(cache_of(own, positions, capacity), caches.DynamicCache())
    # Put in afterwards: asked for their length, they would have none that is known.
    cache.cross_attention_cache = cache_of(cross, positions, capacity)
    cache.is_updated = dict.fromkeys(range(len(cross)), True)
    return cache

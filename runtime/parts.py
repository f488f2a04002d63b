"""The parts of an encoder-decoder, each a module of its own, so that each is a graph of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError
from tfx.extras import need
from tfx.recipe import ENCODER, PARTS

if TYPE_CHECKING:
    import torch


def part_of(model: Any, part: str) -> torch.nn.Module:
    """One part of an encoder-decoder of transformers, in eval mode.

    The encoder takes what the model takes and returns ``last_hidden_state``. The decoder takes

    - ``input_ids``, the target so far, ``int64[batch, sequence]``,
    - ``encoder_hidden_states``, ``[batch, encoder_sequence, hidden]``,
    - ``encoder_attention_mask``, ``[batch, encoder_sequence]``, where the encoder has a mask,

    and returns what the model returns: ``logits``, or ``last_hidden_state`` without a head.

    Raises:
        SourceError: If there is no such part.
    """
    if part not in PARTS:
        raise SourceError(f"no part called {part!r}", hint=f"Use one of: {', '.join(PARTS)}.")
    return (_encoder(model) if part == ENCODER else _decoder(model)).eval()


def _encoder(model: Any) -> torch.nn.Module:
    torch = need("torch")

    class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.get_encoder()

        def forward(self, **inputs: Any) -> dict[str, Any]:
            return {"last_hidden_state": self.encoder(**inputs, return_dict=True).last_hidden_state}

    return Encoder()


def _decoder(model: Any) -> torch.nn.Module:
    torch = need("torch")
    # With the fields of a mixture of experts, which Switch and NLLB-MoE look up.
    outputs_of_encoder = need("transformers.modeling_outputs").MoEModelOutput

    class Decoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: Any,
            encoder_hidden_states: Any,
            encoder_attention_mask: Any = None,
        ) -> dict[str, Any]:
            inputs = {
                "decoder_input_ids": input_ids,
                "encoder_outputs": outputs_of_encoder(last_hidden_state=encoder_hidden_states),
            }
            if encoder_attention_mask is not None:
                inputs["attention_mask"] = encoder_attention_mask
            outputs = self.model(**inputs, use_cache=False, return_dict=True)
            name = "logits" if "logits" in outputs else "last_hidden_state"
            return {name: outputs[name]}

    return Decoder()

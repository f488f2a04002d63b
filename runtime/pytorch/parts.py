"""Modules around models of transformers, so that what they compute is one graph, or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfx.errors import SourceError
from tfx.extras import need
from tfx.recipe import DECODER, ENCODER, GENERATING_PARTS, GENERATOR, PARTS

from .around import around
from .generators import generator_of
from .pairs import pair_part_of

if TYPE_CHECKING:
    import torch

# Class -> what it draws at random at inference and is averaged here. SpeechT5's prenet does so
# by design (modeling_speecht5.py, SpeechT5SpeechDecoderPrenet._consistent_dropout); no two runs
# of PyTorch would agree, and so no proof could hold.
AVERAGED: Mapping[str, str] = dict.fromkeys(
    ("SpeechT5ForTextToSpeech", "SpeechT5ForSpeechToSpeech"),
    "the dropout that the decoder's prenet applies at inference too is its average here, so "
    "that the same input gives the same output; PyTorch is compared with it averaged as well",
)

# Model types that hold AIMv2's reader of texts.
AIMV2 = ("aimv2", "aimv2_text_model")


def notes_of(class_name: str, config: Any, part: str) -> tuple[str, ...]:
    """What ``whole_of`` and ``part_of`` change in a class of transformers, a sentence each."""
    if part == DECODER and class_name in AVERAGED:
        return (AVERAGED[class_name],)
    if _by_end_token(class_name, config):
        return (
            f"a text is classified at its last end token (id {config.eos_token_id}); one without "
            "is by its first token, where PyTorch refuses it",
        )
    if getattr(config, "model_type", "") in AIMV2:
        return (
            "texts are read forwards, as where one is padded; PyTorch's fused attention reads "
            "those without padding in both directions",
        )
    return ()


def whole_of(model: Any) -> torch.nn.Module:
    """A model of one graph: itself, or a module around it where its code is no graph's.

    Encoder-decoders that classify texts (BART, T5) pick the last end token of each by a mask,
    and refuse texts with more or fewer of them than others: sizes that depend on data. Around
    them its place is looked up; a text without one is classified by its first token.

    Forecasters that read the future so far (Time Series Transformer, Informer, Autoformer) take
    it as ``future_values``, which exporters drop as a label. Around them it is ``future_so_far``;
    outputs are ``loc`` and ``scale`` of each series and, with a head, the parameters of the
    distribution (``params.df``, ...) for every step ahead, else ``last_hidden_state``.

    AIMv2 reads a text forwards where some token of the batch is padding, or attention is eager;
    by PyTorch's kernels, one without is read in both directions (modeling_aimv2.py: no mask is
    made of a mask of ones, and ``is_causal`` is False). Here it is read forwards always.
    """
    _read_forwards(model)
    base = getattr(model, "model", model)
    if hasattr(base, "create_network_inputs"):
        return _forecaster(model, base)
    if _by_end_token(type(model).__name__, model.config):
        return _classifier(model)
    itself: torch.nn.Module = model
    return itself


def _read_forwards(model: Any) -> None:
    if model.config.model_type in AIMV2:
        for layer in getattr(model, "text_model", model).encoder.layers:
            layer.attention.is_causal = True


def _by_end_token(class_name: str, config: Any) -> bool:
    return (
        class_name.endswith("ForSequenceClassification")
        and bool(getattr(config, "is_encoder_decoder", False))
        # T5Gemma looks up the last token that is no padding, which is a graph's.
        and not config.model_type.startswith("t5gemma")
    )


def part_of(model: Any, part: str) -> torch.nn.Module:
    """One part of a model of transformers, in eval mode.

    What generates is the whole model with its cache (``generator_of``), or the two graphs of an
    encoder-decoder with one (``pair_part_of``); the others are the parts of an encoder-decoder
    that is run in one pass.

    The encoder takes what the model takes and returns ``last_hidden_state``. The decoder takes

    - ``input_ids``, the target so far, ``int64[batch, sequence]``,
    - ``encoder_hidden_states``, ``[batch, encoder_sequence, hidden]``,
    - ``encoder_attention_mask``, ``[batch, encoder_sequence]``, where the encoder has a mask,

    and returns what the model returns: ``logits``, or ``last_hidden_state`` without a head.

    A decoder that speaks takes instead of ``input_ids`` the frames so far, ``input_values``,
    ``float32[batch, frames, mel bins]``, and ``speaker_embeddings``, ``float32[batch, size]``; it
    returns ``spectrogram``, ``frames`` (the same before the postnet, to go on from) and
    ``stop_logits``. What upstream draws at random there (``AVERAGED``) is its average.

    Raises:
        SourceError: If there is no such part.
    """
    if part == GENERATOR:
        return generator_of(model)
    if part in GENERATING_PARTS:
        return pair_part_of(model, part)
    if part not in PARTS:
        raise SourceError(f"no part called {part!r}", hint=f"Use one of: {', '.join(PARTS)}.")
    if part == ENCODER:
        return _encoder(model)
    return _speaker(model) if speaks(model) else _decoder(model)


def speaks(model: Any) -> bool:
    """Whether the decoder of a model gives a spectrogram and not tokens."""
    return hasattr(model, "speech_decoder_postnet")


def _encoder(model: Any) -> torch.nn.Module:
    class Encoder(around()):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> dict[str, Any]:
            return {"last_hidden_state": self.encoder(**inputs, return_dict=True).last_hidden_state}

    return Encoder(encoder=_reader(model.get_encoder()))


def _reader(encoder: Any) -> Any:
    """The encoder; one of text that calls its tokens ``input_values`` with their usual name."""
    if not hasattr(getattr(encoder, "prenet", None), "embed_tokens"):
        return encoder

    class TextEncoder(around()):  # type: ignore[misc]
        main_input_name = "input_ids"

        def forward(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
            return self.encoder(input_values=input_ids, attention_mask=attention_mask, **options)

    return TextEncoder(encoder=encoder)


def _decoder(model: Any) -> torch.nn.Module:
    # With the fields of a mixture of experts, which Switch and NLLB-MoE look up.
    outputs_of_encoder = need("transformers.modeling_outputs").MoEModelOutput

    class Decoder(around()):  # type: ignore[misc]
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

    return Decoder(model=model)


def _speaker(model: Any) -> torch.nn.Module:
    outputs_of_encoder = need("transformers.modeling_outputs").BaseModelOutput

    def average(inputs: Any, p: float) -> Any:
        # Upstream keeps a value with probability p and divides by 1 - p.
        return inputs * (p / (1 - p))

    (base,) = (child for child in model.children() if hasattr(child, "decoder"))
    base.decoder.prenet._consistent_dropout = average

    class Speaker(around()):  # type: ignore[misc]
        def forward(
            self,
            input_values: Any,
            encoder_hidden_states: Any,
            speaker_embeddings: Any,
            encoder_attention_mask: Any = None,
        ) -> dict[str, Any]:
            states = getattr(self.model, self.model.base_model_prefix)(
                decoder_input_values=input_values,
                encoder_outputs=outputs_of_encoder(last_hidden_state=encoder_hidden_states),
                attention_mask=encoder_attention_mask,
                speaker_embeddings=speaker_embeddings,
                use_cache=False,
                return_dict=True,
            ).last_hidden_state
            before, after, stop = self.model.speech_decoder_postnet(states)
            return {"spectrogram": after, "frames": before, "stop_logits": stop}

    return Speaker(model=model)


def _classifier(model: Any) -> torch.nn.Module:
    torch = need("torch")

    class Classifier(around()):  # type: ignore[misc]
        main_input_name = "input_ids"

        def forward(self, input_ids: Any, attention_mask: Any = None) -> dict[str, Any]:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            # T5's class shifts; the others' base model does it by itself.
            if hasattr(self.model, "_shift_right"):
                inputs["decoder_input_ids"] = self.model._shift_right(input_ids)
            base = getattr(self.model, self.model.base_model_prefix)
            states = base(**inputs, use_cache=False, return_dict=True).last_hidden_state
            is_end = input_ids == self.model.config.eos_token_id
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            last = torch.where(is_end, places, 0).amax(1)
            picked = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[-1]))
            return {"logits": self.model.classification_head(picked[:, 0])}

    return Classifier(model=model)


def _forecaster(model: Any, base: Any) -> torch.nn.Module:
    head = getattr(model, "parameter_projection", None)

    class Forecaster(around()):  # type: ignore[misc]
        main_input_name = "past_values"

        def forward(
            self,
            past_values: Any,
            past_time_features: Any,
            past_observed_mask: Any,
            future_so_far: Any,
            future_time_features: Any,
            static_categorical_features: Any = None,
            static_real_features: Any = None,
        ) -> dict[str, Any]:
            outputs = base(
                past_values=past_values,
                past_time_features=past_time_features,
                past_observed_mask=past_observed_mask,
                future_values=future_so_far,
                future_time_features=future_time_features,
                static_categorical_features=static_categorical_features,
                static_real_features=static_real_features,
                use_cache=False,
                return_dict=True,
            )
            given: dict[str, Any] = {"last_hidden_state": outputs.last_hidden_state}
            if head is not None:
                names = model.distribution_output.args_dim
                values = head(outputs.last_hidden_state)
                given = {"params": dict(zip(names, values, strict=True))}
            return given | {"loc": outputs.loc, "scale": outputs.scale}

    return Forecaster(model=model)

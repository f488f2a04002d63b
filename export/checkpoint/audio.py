"""A checkpoint's feature extractor and CTC vocabulary to what a bundle says, checked with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfx.errors import FeedError, SourceError
from tfx.extras import need
from tfx.processing import AudioFeatures, AudioPreparation, Transcription
from tfx.runtime.audio import audio_feed
from tfx.runtime.speech.ctc import spoken
from tfx.signature import Signature

from .tokenization import load_tokenizer

WAVEFORM, LOG_MEL, MASK = "input_values", "input_features", "attention_mask"
FILES = ("preprocessor_config.json", "processor_config.json")

# Seconds of the random sounds that are tried.
TRIED = (0.11, 0.5, 0.83)

# How far apart numbers may be. PyTorch computes log-mel features in float32, which alone moves
# those of noise by 2e-6.
FARTHEST = 1e-5

# Frames of the random text that is tried.
FRAMES = 400

ARRAYS = "predict takes arrays, not sound"


def read_audio(folder: Path, signature: Signature, notes: list[str]) -> AudioPreparation | None:
    """Read how sound becomes the input of a checkpoint's model.

    What was read is tried on random sounds beside transformers' own feature extractor: where the
    two differ, nothing is carried, and a note says so.

    Args:
        folder: A checkpoint in the Hugging Face layout.
        signature: Of the graph.
        notes: A sentence is added where sound cannot be carried over.

    Raises:
        SourceError: If the extractor's file is damaged.
    """
    shapes = {spec.name: spec.shape for spec in signature.inputs}
    if not shapes.keys() & {WAVEFORM, LOG_MEL}:
        return None
    if not any((folder / name).is_file() for name in FILES):
        notes.append(f"the checkpoint has no feature extractor: {ARRAYS}")
        return None
    try:
        extractor = need("transformers").AutoFeatureExtractor.from_pretrained(
            folder, trust_remote_code=False
        )
    # What a damaged file raises depends on which extractor it is for.
    except Exception as error:
        raise SourceError(
            f"cannot load the feature extractor of {folder}: {error}",
            hint="Copy or download its files again.",
        ) from error
    said = _preparation(extractor, shapes)
    if said is None or not _agrees(said, extractor, shapes):
        notes.append(f"{type(extractor).__name__} does more than is known here: {ARRAYS}")
        return None
    return said


def _preparation(
    extractor: Any, shapes: dict[str, tuple[int | str, ...]]
) -> AudioPreparation | None:
    """What its settings say in the way Whisper and wav2vec2 mean it; None if they are others."""
    rate, padding = int(extractor.sampling_rate), float(extractor.padding_value)
    if LOG_MEL in shapes:
        if not all(hasattr(extractor, name) for name in ("n_fft", "hop_length", "chunk_length")):
            return None
        return AudioPreparation(
            LOG_MEL,
            AudioFeatures.LOG_MEL,
            rate,
            padding=padding,
            seconds=int(extractor.chunk_length),
            fft=int(extractor.n_fft),
            hop=int(extractor.hop_length),
            mel_bins=int(extractor.feature_size),
        )
    return AudioPreparation(
        WAVEFORM,
        AudioFeatures.WAVEFORM,
        rate,
        normalize=bool(getattr(extractor, "do_normalize", False)),
        mask=MASK if MASK in shapes else "",
        padding=padding,
    )


def _agrees(
    said: AudioPreparation, extractor: Any, shapes: dict[str, tuple[int | str, ...]]
) -> bool:
    """Whether both make the same of random sounds, and what the model takes."""
    rng = np.random.default_rng(0)
    sounds = [
        rng.normal(scale=0.1, size=int(seconds * said.rate)).astype(np.float32) for seconds in TRIED
    ]
    waves = said.features is AudioFeatures.WAVEFORM
    # Models without a mask hear one length at a time.
    batches = [sounds] if said.mask or not waves else [[sound] for sound in sounds]
    more = {"padding": True, "return_attention_mask": True} if waves else {}
    for batch in batches:
        try:
            ours = audio_feed(batch, said)
            theirs = extractor(batch, sampling_rate=said.rate, return_tensors="np", **more)
            wanted = {name: np.asarray(theirs[name]) for name in ours}
        except (FeedError, ValueError, TypeError, KeyError):
            return False
        for name, array in ours.items():
            fits = all(
                isinstance(want, str) or have == want
                for have, want in zip(array.shape[1:], shapes[name][1:], strict=False)
            )
            if array.shape != wanted[name].shape or array.ndim != len(shapes[name]) or not fits:
                return False
            if np.abs(array - wanted[name]).max() > FARTHEST:
                return False
    return True


def read_transcription(
    folder: Path, config: Any, signature: Signature, notes: list[str]
) -> Transcription | None:
    """Read how the frames of a CTC head become text.

    What was read is tried on random frames beside transformers' own tokenizer.

    Args:
        folder: A checkpoint in the Hugging Face layout.
        config: Its configuration.
        signature: Of the graph; its ``logits`` are ``[batch, frames, tokens]``.
        notes: A sentence is added where text cannot be carried over.

    Raises:
        SourceError: If the tokenizer's files are damaged.
    """
    outputs = {spec.name: spec.shape for spec in signature.outputs}
    count = outputs.get("logits", ("",))[-1]
    strides = getattr(config, "conv_stride", None)
    if WAVEFORM not in {spec.name for spec in signature.inputs} or not strides:
        return None
    if len(outputs.get("logits", ())) != 3 or not isinstance(count, int):
        return None
    if not (folder / "vocab.json").is_file():
        notes.append("the checkpoint has no CTC vocabulary: predict gives logits, not text")
        return None
    tokenizer = load_tokenizer(folder)
    said = _transcription(tokenizer, count, int(np.prod(strides)))
    if said is None or not _spells(said, tokenizer):
        notes.append(
            f"{type(tokenizer).__name__} does more than is known here: "
            "predict gives logits, not text"
        )
        return None
    return said


def _transcription(tokenizer: Any, count: int, hop: int) -> Transcription | None:
    if tokenizer.pad_token_id is None or not hasattr(tokenizer, "word_delimiter_token"):
        return None
    return Transcription(
        "logits",
        tuple(map(str, tokenizer.convert_ids_to_tokens(list(range(count))))),
        int(tokenizer.pad_token_id),
        tokenizer.word_delimiter_token or "",
        bool(getattr(tokenizer, "do_lower_case", False)),
        hop,
    )


def _spells(said: Transcription, tokenizer: Any) -> bool:
    """Whether both make the same text of random frames."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(said.tokens), FRAMES).repeat(rng.integers(1, 4, FRAMES))
    return bool(spoken(ids, said) == tokenizer.decode(ids.tolist()))

"""A session that writes down what is said: Whisper's two graphs, or one with a CTC head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfx.errors import FeedError
from tfx.signature import BATCH, Feed

from ..backend import Executable
from ..generation.continuations import Writer
from ..generation.decoder import longest
from ..generation.kv_cache import is_cross
from ..generation.pairs import CrossDecoder
from .sounds import BATCH_ROWS, read_sound
from .transcriber import Transcriber
from .wishes import Wishes

if TYPE_CHECKING:
    from tfx.bundle import Bundle

    from ..generation.encoders import Encoder


class Listener(Protocol):
    """What of a session writes down what is said.

    Attributes:
        bundle: What it runs.
    """

    bundle: Bundle

    def predict(self, inputs: Any, *, sampling_rate: int | None) -> Any:
        """What a CTC head says of sounds."""
        ...

    def encoder(self) -> Encoder:
        """The encoder of a decoder."""
        ...


class PairScribe:
    """Whisper's encoder and its decoder with a cache; for one thread.

    Attributes:
        positions: Most tokens of a text, those it begins with included.
        rows: Most windows at a time.
    """

    def __init__(
        self,
        decoder: Bundle,
        executable: Executable,
        encoder: Bundle,
        encode: Callable[[Feed], Mapping[str, np.ndarray]],
    ) -> None:
        self._signature = decoder.manifest.signature
        self._executable, self._encode = executable, encode
        (spec,) = encoder.manifest.signature.inputs
        self._input = spec.name
        self._crossed: dict[str, np.ndarray] = {}
        self._decoder: CrossDecoder | None = None
        self.positions = longest(self._signature)
        bounds = [one.manifest.signature.ranges.get(BATCH) for one in (decoder, encoder)]
        self.rows = min([BATCH_ROWS, *(bound.max if bound else 1 for bound in bounds)])

    def hear(self, features: np.ndarray) -> None:
        """Run the encoder on windows, ``float32[windows, mel bins, frames]``."""
        given = self._encode({self._input: features})
        self._crossed = {
            spec.name: given[spec.name] for spec in self._signature.inputs if is_cross(spec)
        }

    def start(self, ids: np.ndarray, windows: Sequence[int]) -> np.ndarray:
        """Read tokens into an empty cache; logits of what follows, ``float32[rows, vocabulary]``.

        Args:
            ids: ``int64[rows, tokens]``.
            windows: Which one of those heard each row is of.
        """
        crossed = self._crossed
        if list(windows) != list(range(len(next(iter(crossed.values()))))):
            chosen = list(windows)
            crossed = {name: np.ascontiguousarray(array[chosen]) for name, array in crossed.items()}
        self._decoder = CrossDecoder(self._executable, self._signature, crossed)
        return self._decoder.start(ids, np.ones_like(ids), self.positions)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one more token of each row, ``int64[rows]``; logits of what follows."""
        assert self._decoder is not None  # start made it
        return self._decoder.step(tokens)


def transcribe(
    session: Listener, executable: Executable, sounds: Any, rate: int | None, wishes: Wishes
) -> Any:
    """Write down what is said in sounds; see ``Session.transcribe``.

    Args:
        session: Of a decoder that takes dictation, or of a model with a CTC head.
        executable: What runs it.
        sounds: A WAV file's path or ``float32[samples]``, or a list of those.
        rate: Of arrays, samples a second; None for the model's.
        wishes: How.

    Raises:
        DataError: If a file cannot be read.
        FeedError: If the bundle writes nothing down, or cannot do as asked.
    """
    if isinstance(sounds, list) and not sounds:
        raise FeedError("got an empty list, expected at least one sound")
    check_transcription(session.bundle, wishes)
    dictation = session.bundle.manifest.processing.dictation
    if dictation is None:
        return session.predict(sounds, sampling_rate=rate)
    encoder = session.encoder()
    hearing = encoder.bundle.manifest.processing.audio
    if hearing is None:
        raise FeedError(
            f"{encoder.bundle.name} does not say how sound becomes arrays",
            hint="Export its checkpoint again, with preprocessor_config.json in it.",
        )
    writer = Writer(session.bundle)

    def spell(ids: Sequence[int]) -> str:
        text: str = writer.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    samples = [
        read_sound(sound, hearing.rate, rate)
        for sound in (sounds if isinstance(sounds, list) else [sounds])
    ]
    if not all(np.isfinite(one).all() for one in samples):
        raise FeedError(
            "a sound holds NaN or infinity",
            hint="Check how it was read: samples are floats from -1 to 1.",
        )
    scribe = PairScribe(session.bundle, executable, encoder.bundle, encoder.predict)
    found = Transcriber(scribe, hearing, dictation, spell).transcribe(samples, wishes)
    return found if isinstance(sounds, list) else found[0]


def check_transcription(bundle: Bundle, wishes: Wishes) -> None:
    """Say what a bundle cannot do of what is asked, whatever it is to hear.

    Args:
        bundle: What is to write down what is said.
        wishes: How.

    Raises:
        FeedError: If the bundle writes nothing down, or cannot do as asked.
    """
    processing = bundle.manifest.processing
    if processing.dictation is not None:
        wishes.check(processing.dictation)
    elif processing.transcription is None:
        raise FeedError(
            f"{bundle.name} does not write down what is said",
            hint="Open the decoder of a Whisper model, or a model with a CTC head.",
        )
    elif given := wishes.given():
        raise FeedError(
            f"{bundle.name} writes down what it hears, and takes no {', '.join(given)}",
            hint="Leave them out.",
        )

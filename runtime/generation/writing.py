"""What a session does with text that goes on, and with text made from text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tfx.bundle import Bundle
from tfx.errors import FeedError

from ..backend import Executable

if TYPE_CHECKING:  # imported where it is needed: few sessions generate text
    from ..speech.fallback import Fallback
    from .encoders import Encoder
    from .generator import Generated, TextGenerator, Token
    from .pairs import PairGenerator


class Writing:
    """The part of a session that writes texts; the other part runs the model.

    Attributes:
        bundle: What it runs.
    """

    bundle: Bundle
    _executable: Executable

    def generate(self, prompts: Any, **options: Any) -> Any:
        """Let prompts go on until they are over; an encoder-decoder makes a text from each.

        Args:
            prompts: A text, a list of token ids, or a chat (a list of mappings with "role" and
                "content", for a bundle with a chat template); or a list of those.
            options: Fields of ``tfx.runtime.generation.generator.Options``: ``max_new_tokens``,
                ``min_new_tokens``, ``temperature``, ``top_p``, ``top_k``,
                ``repetition_penalty``, ``stop``, ``seed``, ``num_beams``. By default the
                likeliest token is taken each time. What is drawn for a prompt depends on the
                seed and its place in the list, not on the prompts beside it.

        Returns:
            A ``Generated``; for a list, one of each.

        Raises:
            FeedError: If the bundle has no cache, or prompts or options do not fit.
            BackendError: If the session is closed or the backend fails.
        """
        from .generator import options_from

        return self._generator().generate(prompts, options_from(options))

    def generate_each(self, prompts: Any, **options: Any) -> Iterator[Generated]:
        """The same as ``generate``, some texts at a time, as they are over.

        Yields:
            The ``Generated`` of each prompt, in their order.
        """
        from .generator import options_from

        return self._generator().generate_each(prompts, options_from(options))

    def stream(self, prompts: Any, **options: Any) -> Iterator[Token]:
        """The same as ``generate``, token by token; what is no longer read is not computed.

        Yields:
            Each ``Token`` when it is chosen, of all rows by turns.
        """
        from .generator import options_from

        return self._generator().stream(prompts, options_from(options))

    def translate(
        self,
        texts: str | Sequence[str],
        *,
        task: str = "",
        source: str = "",
        target: str = "",
        **options: Any,
    ) -> Any:
        """Make a text from each text as the model was trained to: translate, or summarize.

        Beams, lengths and penalties are those that the model asks for.

        Args:
            texts: One, or a list.
            task: Of a model of several (T5): one it knows, as "translation_en_to_de", or the
                text to put before each text, which ends in ": "; "" for none, or for the only one.
            source: Of a model of many languages (M2M, mBART, NLLB): code of the one to read; ""
                for the one that its tokenizer was saved with.
            target: Code of the one to write in, also of a Marian of several.
            options: As of ``generate``; they go before what the model asks for.

        Returns:
            The text; for a list, one of each.

        Raises:
            FeedError: If the bundle is no decoder, it does not know the task or language, or
                texts or options do not fit.
        """
        from .pairs import translate

        self._check_open(None)
        return translate(self._pair(), texts, task, (source, target), options)

    def transcribe(
        self,
        sounds: Any,
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        max_new_tokens: int | None = None,
        fallback: Fallback | None = None,
        sampling_rate: int | None = None,
    ) -> Any:
        """Write down what is said: with Whisper's decoder, its encoder beside it, or a CTC head.

        The likeliest token is taken each time. Several sounds are written together. A long
        sound is read in windows, each from where the last time in the one before was.

        Args:
            sounds: A WAV file's path, or ``float32[samples]``; or a list of those.
            language: Code of what is spoken; None to have it found out, from the first window.
            task: "transcribe", or "translate" into English.
            timestamps: Whether the transcript has its parts in time.
            max_new_tokens: Most tokens of a window; None for all there is room for.
            fallback: When a window's text is taken for wrong and drawn again, at which
                temperatures; None for never.
            sampling_rate: Of arrays, samples a second; None for the model's.

        Returns:
            A ``Transcript``; for a list, one of each.

        Raises:
            DataError: If a file cannot be read.
            FeedError: If the bundle writes nothing down, or does not do what is asked.
            BackendError: If the session is closed or the backend fails.
        """
        from ..speech.scribe import transcribe
        from ..speech.wishes import Wishes

        self._check_open(None)
        wishes = Wishes(
            language=language,
            task=task,
            timestamps=timestamps,
            max_new_tokens=max_new_tokens,
            fallback=fallback,
        )
        return transcribe(self, self._executable, sounds, sampling_rate, wishes)

    def predict(self, inputs: Any, *, sampling_rate: int | None = None) -> Any:
        """Run the model; a session does it."""
        raise NotImplementedError

    def encoder(self) -> Encoder:
        """The encoder that a decoder belongs to; a session opens it."""
        raise NotImplementedError

    def _check_open(self, max_rows: int | None) -> None:
        raise NotImplementedError

    def _generator(self) -> TextGenerator:
        from .generator import TextGenerator

        self._check_open(None)
        if self.bundle.manifest.encoder is not None:
            return self._pair()
        return TextGenerator(self.bundle, self._executable)

    def _pair(self) -> PairGenerator:
        from .pairs import PairGenerator

        if self.bundle.manifest.encoder is None:
            raise FeedError(
                f"{self.bundle.name} is no decoder beside an encoder: it cannot translate",
                hint="Use generate, or export an encoder-decoder with its cache.",
            )
        encoder = self.encoder()
        return PairGenerator(self.bundle, self._executable, encoder.bundle, encoder.predict)

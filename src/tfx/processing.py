"""How texts, images and sound become feeds and outputs answers: what a bundle must say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Pooling(StrEnum):
    """One vector from the vectors of all tokens; names as in sentence-transformers."""

    CLS = "cls"
    MEAN = "mean"
    MAX = "max"
    MEAN_SQRT_LENGTH = "mean_sqrt_len_tokens"
    LAST_TOKEN = "lasttoken"


class Activation(StrEnum):
    """What turns logits into scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class Resample(StrEnum):
    """How an image is made larger or smaller; names as in Pillow."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class AudioFeatures(StrEnum):
    """What a model hears of a sound."""

    WAVEFORM = "waveform"
    LOG_MEL = "log-mel"


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How a batch of texts becomes the token inputs of a model.

    Attributes:
        file: The ``tokenizers`` JSON inside the bundle.
        max_length: Tokens kept of a text, special tokens included.
        pad_id: Token id of padding.
        pad_side: "right" or "left".
        known: Tokens of the file from this id on are unknown to the model; 0 where it knows all.
        unknown_id: The id that the model has for those.
    """

    file: str
    max_length: int
    pad_id: int = 0
    pad_side: str = "right"
    known: int = 0
    unknown_id: int = 0

    def of_model(self, ids: Sequence[int]) -> Sequence[int]:
        """The model's ids of tokens that the file gives."""
        if not self.known:
            return ids
        return [one if one < self.known else self.unknown_id for one in ids]


@dataclass(frozen=True, slots=True)
class ImagePreparation:
    """How images become an input of shape ``[batch, channels, height, width]``.

    In this order: resized, cropped, scaled, normalized.

    Attributes:
        input: The input they become.
        resize: Height and width; or the shorter edge, where the longer one keeps its share;
            empty for none.
        resample: How they are resized.
        crop: Height and width that are cut out of the middle; empty for all of it.
        scale: What a level of 0 to 255 is multiplied with.
        mean: Subtracted from each channel after that; empty for none.
        std: Each channel is divided by it then; empty for none.
    """

    input: str = "pixel_values"
    resize: tuple[int, ...] = ()
    resample: Resample = Resample.BILINEAR
    crop: tuple[int, ...] = ()
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class AudioPreparation:
    """How sound becomes an input: its samples, or Whisper's log-mel features of a window.

    Attributes:
        input: The input it becomes: ``[batch, samples]``, or ``[batch, mel bins, frames]``.
        features: Which of the two.
        rate: Samples a second.
        normalize: Whether each sound is moved to mean 0 and scaled to variance 1 first.
        mask: Input that tells samples from padding, ``[batch, samples]``; "" for none.
        padding: What short sounds are filled up with.
        seconds: Length of a window of log-mel features, filled up with silence.
        fft: Samples of one Fourier transform.
        hop: Samples from one to the next.
        mel_bins: Bands on the mel scale.
    """

    input: str = "input_values"
    features: AudioFeatures = AudioFeatures.WAVEFORM
    rate: int = 16000
    normalize: bool = False
    mask: str = ""
    padding: float = 0.0
    seconds: int = 30
    fft: int = 400
    hop: int = 160
    mel_bins: int = 80


@dataclass(frozen=True, slots=True)
class Embedding:
    """One vector per text, made from an output of shape ``[batch, sequence, hidden]``.

    Attributes:
        output: The output that holds the token vectors.
        pooling: How they are joined; several poolings are concatenated.
        normalize: Whether each vector is scaled to length 1.
    """

    output: str
    pooling: tuple[Pooling, ...]
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class Classification:
    """Labels and scores, from logits ``[batch, labels]`` or ``[batch, sequence, labels]``.

    Attributes:
        output: The output that holds the logits.
        labels: Label of each class, in the order of the last axis.
        activation: Softmax for one label of many, sigmoid for independent labels, none
            for regression.
        per_token: Whether each token is classified, not the text.
    """

    output: str
    labels: tuple[str, ...]
    activation: Activation = Activation.SOFTMAX
    per_token: bool = False


@dataclass(frozen=True, slots=True)
class Transcription:
    """Text of a sound, from logits ``[batch, frames, tokens]``: CTC, the likeliest of each frame.

    Attributes:
        output: The output that holds the logits.
        tokens: Text of each token, in the order of the last axis.
        blank: The token between two others that says nothing.
        delimiter: The token between words; "" for none.
        lower: Whether the text is made lower case.
        hop: Samples from one frame to the next.
    """

    output: str
    tokens: tuple[str, ...]
    blank: int = 0
    delimiter: str = ""
    lower: bool = False
    hop: int = 320


@dataclass(frozen=True, slots=True)
class Target:
    """How the decoder of a pair begins and goes on: what ``generation_config.json`` says.

    Attributes:
        start: The token every target begins with; none of the text.
        first: The token that must follow it; -1 for any.
        last: The token that a text of full length must end with; -1 for any.
        shortest: Fewest tokens of a target, start and end included.
        longest: Most tokens of one, where the caller does not say; 0 for no such word.
        suppressed: Tokens that are never chosen.
        suppressed_first: Tokens that are not chosen first, or after ``first``.
        ngram: No so many tokens in a row come twice; 0 for any.
        repetition_penalty: Above 1 makes tokens less likely that were there before.
        num_beams: Texts followed at once in a translation.
        length_penalty: Power of the length that the score of a text is divided by.
        early_stopping: "no" ends a search of beams when the best can hardly become better,
            "yes" when there are as many texts as beams, "never" when it cannot.
        renormalize: Whether scores of beams are probabilities again after all this.
        prefixes: Name of a task to the text before its input, e.g.
            ``{"translation_en_to_de": "translate English to German: "}``.
        languages: Code of each language to the token a text in it begins with.
        sources: Code of each language to the token that an input in it has.
        source_place: Where that token is in an input: 0, or -1 for the end.
        leads_input: Whether the token of the language to write in is put before the input
            (Marian), and not before the text.
    """

    start: int
    first: int = -1
    last: int = -1
    shortest: int = 0
    longest: int = 0
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    ngram: int = 0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: str = "no"
    renormalize: bool = False
    prefixes: Mapping[str, str] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    source_place: int = 0
    leads_input: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """How text goes on, with a graph that has a cache.

    Attributes:
        end_ids: Tokens after which a text is over.
        chat_template: File inside the bundle with the Jinja template of a chat; "" for none.
        special: Text of special tokens that the template names, e.g. ``{"bos_token": "<s>"}``.
        target: How a decoder beside an encoder begins and goes on; None for other graphs.
    """

    end_ids: tuple[int, ...] = ()
    chat_template: str = ""
    special: Mapping[str, str] = field(default_factory=dict)
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Dictation:
    """How a decoder writes down what its encoder heard: Whisper's tokens between the words.

    What it writes begins with ``start``, a language, a task and, unless the parts are to have
    times, ``no_times``; each part is between two tokens that are times.

    Attributes:
        start: The token every text begins with.
        end: The token that ends it; those from it on are no words.
        no_times: The token that says that no times follow; the one after it is 0 s. -1 where
            the model knows no times.
        languages: Code of each language to its token, e.g. ``{"en": 50259}``; empty for a
            model of one language.
        tasks: "transcribe" and "translate" to their tokens; empty where it has one task.
        suppressed: Tokens that are never written.
        suppressed_first: Tokens that are not written first.
        latest_first: Most steps of time before the first part begins; -1 for any number.
        step_s: Seconds from one time token to the next, which are those of an encoder's state.
        window: Frames of features that the encoder takes.
        stride: Frames of one state.
    """

    start: int
    end: int
    no_times: int = -1
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    latest_first: int = -1
    step_s: float = 0.02
    window: int = 3000
    stride: int = 2


@dataclass(frozen=True, slots=True)
class Processing:
    """What a bundle does around its graph; absent parts are None."""

    tokenization: Tokenization | None = None
    embedding: Embedding | None = None
    classification: Classification | None = None
    images: ImagePreparation | None = None
    generation: Generation | None = None
    audio: AudioPreparation | None = None
    transcription: Transcription | None = None
    dictation: Dictation | None = None

"""What a session says of a dataset's samples, in the form that a metric looks at."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.errors import BackendError, DataError
from tfx.processing import Activation
from tfx.signature import Feed

from ..array_parts import run_arrays
from ..images import image_feed
from ..session import Session
from ..text.answers import (
    Answer,
    TextLabel,
    TokenLabel,
    embeddings_from,
    own_part,
    scores_from,
    text_label,
)
from ..text.extraction import TextAnswer
from ..text.tokenizer import TextError
from .heads import ARRAYS, LOGITS, Head, head_of
from .metrics import Form, mean_cosine
from .samples import IMAGES, Dataset, DatasetKind

MASK = "attention_mask"

# Samples answered at a time: of vectors and classes, and of outputs for every token, which may
# be a vocabulary wide. Few enough that who waits sees them counted.
CHUNK_SMALL, CHUNK_LARGE = 256, 16

# An image of the size models take is about a megabyte of numbers.
CHUNK_IMAGES = 32
# What is answered with a text, token by token.
CHUNK_WRITTEN = 8
WRITTEN = (DatasetKind.SOUNDS, DatasetKind.TRANSLATIONS)


class NotFiniteError(BackendError):
    """A model that gives NaN or infinity: nothing can be measured on it."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a session said of a dataset, kept to compare others with.

    Attributes:
        name: Of its bundle.
        bundle: Digest of its bundle.
        data: Digest of the dataset.
        form: What was looked at.
        values: Of each sample.
    """

    name: str
    bundle: str
    data: str
    form: Form
    values: tuple[Any, ...]


class Observations:
    """A dataset as a session sees it.

    Attributes:
        head: What the session's answers are.
        chunk: Samples worth asking for at a time.
    """

    def __init__(
        self,
        session: Session,
        dataset: Dataset,
        *,
        max_rows: int | None = None,
        wishes: Mapping[str, Any] | None = None,
    ) -> None:
        """Look at what the session can say of the dataset; nothing runs yet.

        Args:
            session: What answers.
            dataset: What it is asked.
            max_rows: Most samples in one run of the model.
            wishes: More of what ``Session.translate`` is to be asked for, such as a task.
        """
        self._session = session
        self._wishes = dict(wishes or {})
        self._dataset = dataset
        self._max_rows = max_rows
        self.head = head_of(session.bundle, dataset)
        large = self.head in (Head.LOGITS, Head.OUTPUTS)
        self.chunk = CHUNK_LARGE if large else CHUNK_SMALL
        if dataset.kind is DatasetKind.IMAGES:
            self.chunk = min(self.chunk, CHUNK_IMAGES)
        elif dataset.kind in WRITTEN:
            self.chunk = CHUNK_WRITTEN

    def chunks(self) -> Iterator[slice]:
        """The samples' places, a chunk at a time."""
        for start in range(0, len(self._dataset), self.chunk):
            yield slice(start, min(start + self.chunk, len(self._dataset)))

    def predicted(self, form: Form, rows: slice) -> list[Any]:
        """What the session says of some samples.

        Raises:
            DataError: If it cannot read one; names it.
            NotFiniteError: If it gives NaN, or infinity for a number.
            BackendError: If it fails.
        """
        if form is Form.SPEECH:
            heard = self._session.transcribe(list(self._dataset.files[rows]))
            return [one.text for one in heard]
        if form is Form.TRANSLATION:
            given = [str(text) for text in self._dataset.texts[rows]]
            return list(self._session.translate(given, **self._wishes))
        if form is Form.NUMBER and self.head is Head.EMBEDDING:
            return self._finite([mean_cosine(*pair) for pair in self._vectors(rows)], rows)
        if form is Form.VECTORS and self.head is Head.EMBEDDING:
            return self._finite(list(self._vectors(rows)), rows)
        answers = self._answers(rows)
        self._finite([_numbers(answer) for answer in answers], rows)
        if form is Form.TAGS:
            texts = self._dataset.texts[rows]
            return [word_tags(str(text), one) for text, one in zip(texts, answers, strict=True)]
        return [self._value(form, answer) for answer in answers]

    def record(
        self, form: Form, on_progress: Callable[[int], None] = lambda count: None
    ) -> Recorded:
        """Ask for every sample, and keep what is said.

        Args:
            form: Of what is kept.
            on_progress: Told how many more samples are done.
        """
        bundle = self._session.bundle
        values: list[Any] = []
        for rows in self.chunks():
            values += self.predicted(form, rows)
            on_progress(rows.stop - rows.start)
        return Recorded(bundle.name, bundle.digest, self._dataset.digest, form, tuple(values))

    def _answers(self, rows: slice) -> list[Answer]:
        if self._dataset.kind in ARRAYS:
            return self._answers_to_feeds(rows)
        if self._dataset.kind is DatasetKind.SOUNDS:
            files = list(self._dataset.files[rows])
            return list(self._session.predict(files, max_rows=self._max_rows))
        return list(self._ask(list(self._dataset.texts[rows]), rows))

    def _vectors(self, rows: slice) -> Sequence[np.ndarray]:
        """Embeddings ``[hidden]``; of pairs, of each text alone, ``[2, hidden]``."""
        if self._dataset.kind in ARRAYS:
            return [np.asarray(answer) for answer in self._answers_to_feeds(rows)]
        texts = self._dataset.texts[rows]
        pairs = [text for text in texts if isinstance(text, tuple)]
        if not pairs:
            return list(np.asarray(self._ask(list(texts), rows)))
        both = [part for pair in pairs for part in pair]
        found = np.asarray(self._ask(both, rows))
        return list(found.reshape(len(pairs), 2, -1))

    def _ask(self, texts: list[Any], rows: slice) -> Any:
        try:
            return self._session.predict(texts, max_rows=self._max_rows)
        except TextError as error:
            index, problem = next(iter(error.problems.items()))
            row = rows.start + index * (rows.stop - rows.start) // len(texts) + 1
            raise DataError(
                f"{self._dataset.name}, sample {row}: {problem}", hint=error.hint
            ) from error

    def _answers_to_feeds(self, rows: slice) -> list[Answer]:
        feed: Feed = {name: array[rows] for name, array in self._dataset.arrays.items()}
        if self._dataset.kind is DatasetKind.IMAGES:
            feed = image_feed(self._session.bundle, feed[IMAGES])
        parts = list(run_arrays(self._session, feed, max_rows=self._max_rows))
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        processing = self._session.bundle.manifest.processing
        mask = feed[MASK].astype(bool) if MASK in feed else None
        if (said := processing.classification) is not None and not said.per_token:
            scores = scores_from(outputs[said.output], said.activation)
            return [text_label(said.labels, row) for row in scores]
        if (embedding := processing.embedding) is not None:
            tokens = outputs[embedding.output]
            present = np.ones(tokens.shape[:2], bool) if mask is None else mask
            return list(embeddings_from(embedding, tokens, present))
        signature = self._session.signature
        named = {spec.name for spec in signature.inputs}
        count = rows.stop - rows.start
        if mask is None or "input_ids" not in named:
            return [{name: array[row] for name, array in outputs.items()} for row in range(count)]
        return [own_part(signature, outputs, row, mask[row]) for row in range(count)]

    def _value(self, form: Form, answer: Answer) -> Any:
        if isinstance(answer, TextLabel):
            scores = np.array(answer.scores, np.float32)
            if form is Form.NUMBER:
                return answer.scores[0]
            if form is Form.SCORES:
                return self._probabilities(scores)
            return int(scores.argmax())
        if isinstance(answer, TextAnswer):
            return answer.text
        if isinstance(answer, list):
            return np.array([token.label for token in answer])
        outputs = answer if isinstance(answer, dict) else {LOGITS: answer}
        array = outputs[LOGITS] if self.head is Head.LOGITS else _main_output(outputs)
        match form:
            case Form.NUMBER:
                return float(array[0])
            case Form.CLASS:
                return int(array.argmax())
            case Form.CHOICES:
                return array.argmax(axis=-1)
            case Form.SCORES:
                return scores_from(array, Activation.SOFTMAX)
        return array

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        said = self._session.bundle.manifest.processing.classification
        assert said is not None  # what gave a TextLabel
        if said.activation is Activation.SIGMOID:  # each label by itself: it holds, or not
            return np.stack([scores, 1 - scores], axis=-1)
        if said.activation is Activation.SOFTMAX:
            return scores
        return scores_from(scores, Activation.SOFTMAX)

    def _finite(self, values: list[Any], rows: slice) -> list[Any]:
        for row, value in enumerate(values, rows.start + 1):
            if not np.isfinite(value).all():
                raise NotFiniteError(
                    f"{self._session.bundle.name} on {self._session.report.facts} gives NaN or "
                    f"infinity for sample {row} of {self._dataset.name}",
                    hint="Use a higher precision.",
                )
        return values


def word_tags(text: str, answer: Answer) -> tuple[str, ...]:
    """The tag of each word of a text: that of its first token, O where it has none.

    Args:
        text: Words joined by one space each.
        answer: The labels of its tokens.
    """
    words = text.split(" ")
    ends = [end - 1 for end in itertools.accumulate(len(word) + 1 for word in words)]
    tags = [""] * len(words)
    tokens: list[TokenLabel] = answer if isinstance(answer, list) else []
    for token in tokens:
        # Some tokens begin with the space before their word, which no word's end is after.
        index = bisect_right(ends, token.start)
        if index < len(words) and not tags[index]:
            tags[index] = token.label
    return tuple(tag or "O" for tag in tags)


def _numbers(answer: Answer) -> Any:
    """Numbers of an answer that must be finite. Logits may be -inf where a model rules out."""
    if isinstance(answer, TextLabel):
        return answer.scores
    if isinstance(answer, TextAnswer):
        return answer.score
    if isinstance(answer, list):
        return [token.score for token in answer]
    if isinstance(answer, dict):
        return [0.0 if not np.isnan(array).any() else np.nan for array in answer.values()]
    return answer


def _main_output(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of float numbers, which models order by importance."""
    for array in outputs.values():
        if array.dtype.kind == "f":
            return array
    raise DataError(
        f"no output holds floats: got {', '.join(outputs)}",
        hint="Export the model with a head that gives floats.",
    )

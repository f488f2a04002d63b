"""Outputs to answers: embeddings, labels and scores, or each text's own part of the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.bundle import Bundle
from tfx.errors import BundleError
from tfx.processing import Activation, Classification, Embedding, Pooling
from tfx.signature import Signature

from .extraction import END, START, Candidate, TextAnswer, answer_from, best_span
from .tokenizer import Encoded, Text, TokenBatch


@dataclass(frozen=True, slots=True)
class TextLabel:
    """What a classifier says of a text.

    Attributes:
        label: The label with the highest score.
        score: Its score: a probability, or the number itself for regression.
        scores: Score of every class, in the order of the model's labels; ``float32[labels]``.
    """

    label: str
    score: float
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenLabel:
    """What a classifier says of one token; words of several tokens get one answer for each.

    Attributes:
        label: The label with the highest score.
        score: Its probability.
        text: The characters the token stands for.
        start: First of them.
        end: One past the last.
        part: 0, or 1 for the second text of a pair.
    """

    label: str
    score: float
    text: str
    start: int
    end: int
    part: int = 0


# What one text gives: a vector, a label, labels of its tokens, an answer found in it, or its part
# of every output.
Answer = np.ndarray | TextLabel | list[TokenLabel] | TextAnswer | dict[str, np.ndarray]


class Answers:
    """How the outputs of one bundle become answers."""

    def __init__(self, bundle: Bundle) -> None:
        self._where = bundle.name
        self._signature = bundle.manifest.signature
        self.embedding = bundle.manifest.processing.embedding
        self.classification = bundle.manifest.processing.classification
        outputs = {spec.name: len(spec.shape) for spec in self._signature.outputs}
        self.extracts = outputs.get(START) == outputs.get(END) == 2

    @property
    def needs_spans(self) -> bool:
        """Whether the tokenizer must say where each token is in its text."""
        return self.extracts or self._per_token

    @property
    def joins_windows(self) -> bool:
        """Whether the answers to the windows of a long text make one to all of it."""
        return self.extracts or self.classification is not None or self.embedding is not None

    @property
    def _per_token(self) -> bool:
        return self.classification is not None and self.classification.per_token

    def of_batch(
        self,
        outputs: Mapping[str, np.ndarray],
        batch: TokenBatch,
        texts: Sequence[Text],
        encoded: Sequence[Encoded],
    ) -> Sequence[Answer | Candidate]:
        """The answer for each text of a batch, or for each window of one.

        Args:
            outputs: What the model gave for ``batch.feed``.
            batch: The padded tokens.
            texts: The texts they came from, in the same order.
            encoded: The same, as tokens.

        Raises:
            BundleError: If the outputs do not fit what the manifest says of them.
        """
        if self.extracts:
            return self._candidates(outputs, batch, encoded)
        if self.classification is not None:
            return self._labels(self.classification, outputs, batch, texts, encoded)
        if self.embedding is not None:
            vectors = embeddings_from(self.embedding, self._output(outputs, batch, 3), batch.mask)
            return list(vectors[: batch.rows])
        return [
            own_part(self._signature, outputs, row, batch.mask[row]) for row in range(batch.rows)
        ]

    def joined(
        self, found: Sequence[Answer | Candidate], text: Text, encoded: Sequence[Encoded]
    ) -> Any:
        """The answer for a text, from those of its windows.

        Embeddings and scores are the mean over the windows; a token's label is that of the window
        which has most of the text on both sides of it.

        Args:
            found: What ``of_batch`` gave for each window.
            text: All of it.
            encoded: The windows.
        """
        if self.extracts:
            candidates = [one for one in found if isinstance(one, Candidate)]
            return answer_from(candidates, text[1])
        if len(found) == 1:
            return found[0]
        assert self.joins_windows  # else nobody asked for windows
        if self.classification is None:
            mean = np.mean([np.asarray(one) for one in found], axis=0)
            said = self.embedding
            return normalized(mean) if said is not None and said.normalize else mean
        if not self._per_token:
            scores = np.array([one.scores for one in found if isinstance(one, TextLabel)])
            return text_label(self.classification.labels, scores.mean(axis=0))
        return joined_tokens([one for one in found if isinstance(one, list)], encoded)

    def _candidates(
        self, outputs: Mapping[str, np.ndarray], batch: TokenBatch, encoded: Sequence[Encoded]
    ) -> list[Candidate]:
        for name in (START, END):
            if name not in outputs or outputs[name].shape != batch.mask.shape:
                raise BundleError(
                    f"{self._where}: {name} does not have the shape of the tokens, "
                    f"{list(batch.mask.shape)}",
                    hint="Give it arrays instead of texts.",
                )
        found = []
        for row, one in enumerate(encoded):
            first = int(batch.mask[row].argmax())  # where padding on the left ends
            found.append(best_span(outputs[START][row, first:], outputs[END][row, first:], one))
        return found

    def _labels(
        self,
        classification: Classification,
        outputs: Mapping[str, np.ndarray],
        batch: TokenBatch,
        texts: Sequence[Text],
        encoded: Sequence[Encoded],
    ) -> Sequence[Answer]:
        logits = self._output(outputs, batch, 3 if classification.per_token else 2)
        labels = classification.labels
        if logits.shape[-1] != len(labels):
            raise BundleError(
                f"{self._where}: {classification.output} has {logits.shape[-1]} classes, "
                f"the manifest has {len(labels)} labels",
                hint="Export the model again.",
            )
        scores = scores_from(logits, classification.activation)
        if not classification.per_token:
            return [text_label(labels, row) for row in scores[: batch.rows]]
        answers = []
        for row, (text, one) in enumerate(zip(texts, encoded, strict=True)):
            first = int(batch.mask[row].argmax())  # where padding on the left ends
            answers.append(token_labels(labels, scores[row, first:], text, one))
        return answers

    def _output(
        self, outputs: Mapping[str, np.ndarray], batch: TokenBatch, ndim: int
    ) -> np.ndarray:
        said = self.classification or self.embedding
        assert said is not None  # the callers looked
        array = outputs.get(said.output)
        if array is None:
            raise BundleError(
                f"{self._where}: the manifest names an output {said.output!r}",
                hint="Export the model again.",
            )
        if array.ndim != ndim or array.shape[: ndim - 1] != batch.mask.shape[: ndim - 1]:
            raise BundleError(
                f"{self._where}: {said.output} is {list(array.shape)} for tokens "
                f"{list(batch.mask.shape)}, expected {ndim} axes that begin like theirs"
            )
        return array


def embeddings_from(embedding: Embedding, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pool and normalize token vectors as sentence-transformers does.

    Args:
        embedding: Which poolings; several are concatenated.
        tokens: ``[batch, sequence, hidden]``, any float dtype.
        mask: Which tokens are not padding; ``bool[batch, sequence]``.

    Returns:
        ``float32[batch, hidden * poolings]``.
    """
    vectors = tokens.astype(np.float32, copy=False)
    pooled = np.concatenate([pool(vectors, mask, mode) for mode in embedding.pooling], axis=-1)
    return normalized(pooled) if embedding.normalize else pooled


def pool(tokens: np.ndarray, mask: np.ndarray, mode: Pooling) -> np.ndarray:
    """Join the token vectors of each text into one.

    The definitions are those of sentence-transformers' ``Pooling``. A row without a token,
    which no tokenizer gives, is 0 for all but cls and max.

    Args:
        tokens: ``float32[batch, sequence, hidden]``.
        mask: ``bool[batch, sequence]``; padding may be on either side.
        mode: How.

    Returns:
        ``float32[batch, hidden]``.
    """
    rows = np.arange(len(tokens))
    match mode:
        case Pooling.CLS:
            first: np.ndarray = tokens[rows, mask.argmax(axis=1)]
            return first
        case Pooling.LAST_TOKEN:
            ends = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
            last: np.ndarray = tokens[rows, ends] * mask[rows, ends, None]
            return last
        case Pooling.MAX:
            largest: np.ndarray = np.where(mask[:, :, None], tokens, -np.inf).max(axis=1)
            return largest.astype(np.float32, copy=False)
    weights = mask.astype(np.float32)
    total = np.einsum("bsh,bs->bh", tokens, weights)
    count = np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-9))
    joined: np.ndarray = total / (count if mode is Pooling.MEAN else np.sqrt(count))
    return joined


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Scale each vector to length 1: ``v / max(|v|, 1e-12)``, as ``torch.nn.functional.normalize``.

    Args:
        vectors: ``float32[..., hidden]``.
    """
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled


def scores_from(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Turn logits into scores, without overflow for any finite logit.

    Args:
        logits: ``[..., labels]``, any float dtype.
        activation: Softmax over the last axis, sigmoid of each, or nothing.

    Returns:
        float32, shaped like ``logits``.
    """
    logits = logits.astype(np.float32, copy=False)
    if activation is Activation.NONE:
        return logits
    # exp() of nothing above 0: cannot overflow, and what underflows is 0 in float32 anyway.
    if activation is Activation.SIGMOID:
        small = np.exp(-np.abs(logits))
        sigmoid: np.ndarray = np.where(logits >= 0, 1, small) / (1 + small)
        return sigmoid
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    softmax: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return softmax


def text_label(labels: Sequence[str], scores: np.ndarray) -> TextLabel:
    """The best label of a text's ``float32[labels]``; the first of equals."""
    best = int(scores.argmax())
    return TextLabel(labels[best], float(scores[best]), tuple(scores.tolist()))


def token_labels(
    labels: Sequence[str], scores: np.ndarray, text: Text, encoded: Encoded
) -> list[TokenLabel]:
    """The best label of each token that is not special.

    Args:
        labels: Of the classes.
        scores: ``float32[tokens, labels]``, beginning with the text's first token.
        text: The text, or pair, they are of.
        encoded: Its tokens and where they are in it.
    """
    parts = (text,) if isinstance(text, str) else text
    best = scores.argmax(axis=-1)
    return [
        TokenLabel(
            label=labels[best[span.position]],
            score=float(scores[span.position, best[span.position]]),
            text=parts[span.part][span.start : span.end],
            start=span.start,
            end=span.end,
            part=span.part,
        )
        for span in encoded.spans
    ]


def joined_tokens(
    found: Sequence[list[TokenLabel]], encoded: Sequence[Encoded]
) -> list[TokenLabel]:
    """The labels of a long text's tokens, each from the window that has most on both sides of it.

    Args:
        found: Of the tokens of each window.
        encoded: The windows.
    """
    best: dict[tuple[int, int], tuple[int, TokenLabel]] = {}
    for labels, one in zip(found, encoded, strict=True):
        part = max((span.part for span in one.spans), default=0)  # of a pair the second is cut
        count = sum(span.part == part for span in one.spans)
        seen = 0
        for label, span in zip(labels, one.spans, strict=True):
            if span.part == part:
                around, place = min(seen, count - 1 - seen), span.position + one.skipped
                seen += 1
            else:
                around, place = 0, span.position
            key = (span.part, place)
            if key not in best or around > best[key][0]:
                best[key] = (around, label)
    return [label for _, (_, label) in sorted(best.items(), key=lambda item: item[0])]


def own_part(
    signature: Signature, outputs: Mapping[str, np.ndarray], row: int, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """What one text of a batch gave, its padding cut off.

    Args:
        signature: Says which outputs have a batch and a sequence axis; one without a batch
            axis is given whole to every text.
        outputs: Output name to array.
        row: Of the text in the batch.
        mask: Which of its tokens are not padding; ``bool[sequence]``.

    Returns:
        Output name to array without the batch axis, e.g. ``[tokens, hidden]``.
    """
    ids = next(spec for spec in signature.inputs if spec.name == "input_ids")
    rows, tokens = ids.shape
    own = {}
    for spec in signature.outputs:
        array, shape = outputs[spec.name], list(spec.shape)
        if shape and shape[0] == rows:
            array, shape = array[row], shape[1:]
        # Attention weights have two axes over the tokens: both are cut. Where the length is
        # fixed, a later axis of that size may as well be a hidden one.
        for axis, size in enumerate(shape):
            if size == tokens and (isinstance(tokens, str) or axis == 0):
                array = array.compress(mask, axis=axis)
        own[spec.name] = array.copy()  # a view would keep the whole batch alive
    return own

"""What a bundle's answers for a dataset are, and what of them a metric may look at."""

from __future__ import annotations

from enum import StrEnum

from tfx.bundle import Bundle
from tfx.signature import Dim

from ..images import image_problem
from ..text.answers import Answers
from .metrics import Form
from .samples import Dataset, DatasetKind

LOGITS = "logits"

# What is run as it is, without a tokenizer.
ARRAYS = (DatasetKind.FEEDS, DatasetKind.IMAGES)


class Head(StrEnum):
    """What a bundle's answers are."""

    CLASSES = "classes"
    SCORE = "a score"
    TAGS = "tags of tokens"
    EMBEDDING = "embeddings"
    ANSWER = "answers to questions"
    SPEECH = "what is said"
    TRANSLATION = "translations"
    LOGITS = "logits"
    OUTPUTS = "outputs"


# What a metric may look at, by head; ``forms_of`` leaves out what a dataset does not allow.
FORMS: dict[Head, tuple[Form, ...]] = {
    Head.CLASSES: (Form.CLASS, Form.CHOICES, Form.SCORES),
    Head.SCORE: (Form.NUMBER,),
    Head.TAGS: (Form.TAGS, Form.CHOICES),
    Head.EMBEDDING: (Form.NUMBER, Form.VECTORS),
    Head.SPEECH: (Form.SPEECH,),
    Head.TRANSLATION: (Form.TRANSLATION,),
    Head.ANSWER: (Form.ANSWER, Form.CHOICES),
    Head.LOGITS: (
        Form.CLASS,
        Form.NUMBER,
        Form.CHOICES,
        Form.VECTORS,
        Form.SCORES,
        Form.NEXT_TOKENS,
    ),
    Head.OUTPUTS: (Form.VECTORS,),
}


def head_of(bundle: Bundle, dataset: Dataset) -> Head:
    """What the bundle's answers for a dataset are."""
    processing = bundle.manifest.processing
    writes = processing.transcription is not None or processing.dictation is not None
    if dataset.kind is DatasetKind.SOUNDS and writes:
        return Head.SPEECH
    generation = processing.generation
    if dataset.kind is DatasetKind.TRANSLATIONS and generation and generation.target:
        return Head.TRANSLATION
    arrays = dataset.kind in ARRAYS
    if (said := processing.classification) is not None:
        if not said.per_token:
            return Head.CLASSES if len(said.labels) > 1 else Head.SCORE
        if not arrays:
            return Head.TAGS
    elif processing.embedding is not None:
        return Head.EMBEDDING
    elif Answers(bundle).extracts and not arrays:
        return Head.ANSWER
    names = {spec.name for spec in bundle.manifest.signature.outputs}
    return Head.LOGITS if LOGITS in names else Head.OUTPUTS


def forms_of(bundle: Bundle, dataset: Dataset) -> tuple[Form, ...]:
    """What a metric may look at."""
    head = head_of(bundle, dataset)
    return tuple(form for form in FORMS[head] if _allows(bundle, dataset, head, form))


def gives_score(bundle: Bundle) -> bool:
    """Whether the logits are one number for each sample: a score, and of no class."""
    return _logits_shape(bundle)[-1:] == (1,)


def class_names(bundle: Bundle) -> tuple[str, ...]:
    """Names of the classes, or their numbers; empty if the bundle does not say how many."""
    said = bundle.manifest.processing.classification
    if said is not None:
        return said.labels
    width = next(reversed(_logits_shape(bundle)), 0)
    return tuple(map(str, range(width))) if isinstance(width, int) else ()


def _logits_shape(bundle: Bundle) -> tuple[Dim, ...]:
    outputs = bundle.manifest.signature.outputs
    return next((spec.shape for spec in outputs if spec.name == LOGITS), ())


def _allows(bundle: Bundle, dataset: Dataset, head: Head, form: Form) -> bool:
    kind = dataset.kind
    if kind is DatasetKind.SOUNDS and head not in (Head.SPEECH, Head.CLASSES, Head.SCORE):
        return False
    if kind is DatasetKind.IMAGES and image_problem(bundle):
        return False
    if form is Form.TAGS:
        return kind is DatasetKind.TOKENS
    if form is Form.ANSWER:
        return kind is DatasetKind.QUESTIONS
    if head is Head.EMBEDDING and form is Form.NUMBER:
        return kind is DatasetKind.PAIRS
    if form is Form.NEXT_TOKENS:
        return bundle.manifest.task == "text-generation" and kind not in ARRAYS
    if head is Head.LOGITS and form in (Form.CLASS, Form.NUMBER):
        return len(_logits_shape(bundle)) == 2 and gives_score(bundle) == (form is Form.NUMBER)
    return True

import numpy as np
import pytest
from support.texts import MEAN, write_classifier, write_reader, write_text_bundle

from tfx.runtime.accuracy.heads import Head, forms_of, head_of
from tfx.runtime.accuracy.metrics import Form
from tfx.runtime.accuracy.samples import Dataset, DatasetKind


def dataset(kind):
    content = {
        DatasetKind.TEXTS: ("a", "b"),
        DatasetKind.PAIRS: (("a", "b"), ("b", "a")),
        DatasetKind.QUESTIONS: (("a", "b"), ("b", "a")),
        DatasetKind.TOKENS: ("a b", "b"),
        DatasetKind.FEEDS: {"input_ids": np.ones((2, 3), np.int64)},
        DatasetKind.IMAGES: {"images": np.zeros((2, 4, 4, 3), np.uint8)},
    }
    return Dataset("f", kind, content[kind], None)


@pytest.mark.parametrize(
    ("write", "options", "kind", "head", "forms"),
    [
        (write_classifier, {}, "TEXTS", Head.CLASSES, "CLASS CHOICES SCORES"),
        (write_classifier, {}, "FEEDS", Head.CLASSES, "CLASS CHOICES SCORES"),
        (write_classifier, {}, "IMAGES", Head.CLASSES, ""),
        (write_classifier, {"labels": ("x",)}, "PAIRS", Head.SCORE, "NUMBER"),
        (write_classifier, {"per_token": True}, "TOKENS", Head.TAGS, "TAGS CHOICES"),
        (write_classifier, {"per_token": True}, "TEXTS", Head.TAGS, "CHOICES"),
        (
            write_classifier,
            {"per_token": True},
            "FEEDS",
            Head.LOGITS,
            "CHOICES VECTORS SCORES",
        ),
        (write_text_bundle, {"embedding": MEAN}, "PAIRS", Head.EMBEDDING, "NUMBER VECTORS"),
        (write_text_bundle, {"embedding": MEAN}, "TEXTS", Head.EMBEDDING, "VECTORS"),
        (write_text_bundle, {}, "TEXTS", Head.OUTPUTS, "VECTORS"),
        (write_reader, {}, "QUESTIONS", Head.ANSWER, "ANSWER CHOICES"),
        (write_reader, {}, "PAIRS", Head.ANSWER, "CHOICES"),
        (write_reader, {}, "FEEDS", Head.OUTPUTS, "VECTORS"),
    ],
)
def test_what_a_metric_may_look_at(tmp_path, write, options, kind, head, forms):
    bundle = write(tmp_path / "b", **options)
    data = dataset(DatasetKind[kind])
    assert head_of(bundle, data) is head
    assert forms_of(bundle, data) == tuple(Form[name] for name in forms.split())

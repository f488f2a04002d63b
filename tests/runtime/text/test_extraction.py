"""Answers found in contexts: the best run of tokens, also over windows of a long one."""

import io
import json

import numpy as np
import pytest
from support.texts import TOKENIZATION, WORDS, logits_table, write_reader

import tfx
from tfx.errors import BundleError
from tfx.processing import Tokenization
from tfx.runtime.predictions import predict_stream
from tfx.runtime.records import FileFormat
from tfx.runtime.text.extraction import (
    MAX_ANSWER_TOKENS,
    Candidate,
    TextAnswer,
    answer_from,
    best_span,
)
from tfx.runtime.text.texts import TextRunner
from tfx.runtime.text.tokenizer import Encoded, Span, TextError, Tokenizer

# One token: its word, as no other of the tokenizer's words has a logit above it in the table.
TABLE = logits_table(2)[: len(WORDS)]


def encoded(question, context):
    """A question of so many tokens and a context of words of 1 character, 2 characters apart."""
    spans = [Span(1 + i, 0, 2 * i, 2 * i + 1) for i in range(question)]
    first = question + 2
    spans += [Span(first + i, 1, 2 * i, 2 * i + 1) for i in range(context)]
    size = question + context + 3
    return Encoded(np.zeros(size, np.int64), np.zeros(size, np.int64), False, tuple(spans))


def slow_best(starts, ends):
    """Every run, one by one."""
    runs = {
        (i, j): float(starts[i]) + float(ends[j])
        for i in range(len(starts))
        for j in range(i, min(len(ends), i + MAX_ANSWER_TOKENS))
    }
    best = max(runs, key=runs.get)
    return best, runs[best], np.log(np.sum(np.exp(list(runs.values()))))


@pytest.mark.parametrize("context", [1, 2, 29, 30, 31, 70])
def test_the_best_of_all_runs(context, rng):
    one = encoded(3, context)
    starts, ends = rng.normal(scale=3, size=(2, len(one.ids))).astype(np.float32)
    own = slice(5, 5 + context)

    found = best_span(starts, ends, one)

    (first, last), logit, total = slow_best(starts[own], ends[own])
    assert (found.start, found.end) == (2 * first, 2 * last + 1)
    assert found.logit == pytest.approx(logit)
    assert found.total == pytest.approx(total)


def test_only_the_context_answers():
    one = encoded(2, 3)
    starts, ends = np.full((2, len(one.ids)), 50, np.float32)
    starts[4:7], ends[4:7] = [1, 0, 0], [0, 1, 0]
    found = best_span(starts, ends, one)
    assert (found.start, found.end, found.logit) == (0, 3, 2)


def test_no_answer_ends_before_it_begins_or_is_too_long():
    one = encoded(1, 60)
    starts, ends = np.zeros((2, len(one.ids)), np.float32)
    starts[3], ends[3 + MAX_ANSWER_TOKENS] = 9, 9  # a run one longer than allowed
    starts[3 + 50], ends[3 + 45] = 9, 9
    assert best_span(starts, ends, one).logit == 9
    ends[3 + MAX_ANSWER_TOKENS - 1] = 9
    assert best_span(starts, ends, one).logit == 18


def test_huge_logits_do_not_overflow():
    one = encoded(1, 3)
    starts, ends = np.full((2, len(one.ids)), 6e4, np.float16)
    found = best_span(starts, ends, one)
    assert found.logit == pytest.approx(2 * 6e4, rel=1e-3)
    answer = answer_from([found, found], "a b c")
    assert answer.score == pytest.approx(1 / 12)


def test_the_best_window_answers():
    windows = [Candidate(1.0, 2.0, 0, 1), Candidate(3.0, 3.5, 4, 7), Candidate(3.0, 9.0, 0, 0)]
    answer = answer_from(windows[:2], "abc def")
    assert (answer.text, answer.start, answer.end) == ("def", 4, 7)
    assert answer.score == pytest.approx(np.exp(3) / (np.exp(2) + np.exp(3.5)))
    assert answer_from(windows, "abc def").text == "def"


def windows_of(tmp_path, question, context, *, limit):
    settings = Tokenization("tokenizer.json", max_length=limit)
    bundle = write_reader(tmp_path / "reader", tokenization=settings)
    tokenizer = Tokenizer(bundle, spans=True, windows=True, questions=True)
    (found,) = tokenizer.pieces([(" ".join(question), " ".join(context))])
    return found


@pytest.mark.parametrize("limit", [7, 8, 9, 12, 16])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 30])
def test_windows_hold_the_whole_context(tmp_path, limit, count):
    context = [WORDS[4 + i % 8] for i in range(count)]
    found = windows_of(tmp_path, ["good", "film"], context, limit=limit)
    seen = set()
    for one in found:
        assert len(one.ids) <= limit
        assert not one.truncated
        assert one.ids[:4].tolist() == [1, WORDS.index("good"), WORDS.index("film"), 2]
        assert one.ids[-1] == 2
        for span in one.spans:
            if span.part == 1:
                offset = span.start
                seen.add(offset)
                text = " ".join(context)[offset : span.end]
                assert one.ids[span.position] == WORDS.index(text)
    assert len(seen) == count
    assert (len(found) == 1) == (count <= limit - 5)


def test_windows_overlap_by_half_where_they_are_short(tmp_path):
    found = windows_of(tmp_path, ["good"], ["a"] * 20, limit=12)
    firsts = [next(s.start for s in one.spans if s.part == 1) // 2 for one in found]
    assert firsts == [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no pair", "got a string, expected a pair: a question and its context"),
        (("good", ""), "has a context without tokens"),
        (("good", "  "), "has a context without tokens"),
        (
            ("a " * 13, "b"),
            "has a question of 13 tokens, which leaves no room for its context: the model takes 16",
        ),
        (("a", 3), "got a pair with a int, expected a pair of strings"),
    ],
)
def test_what_cannot_be_asked(tmp_path, text, problem):
    with (
        tfx.open_session(write_reader(tmp_path / "reader"), backend="onnxruntime") as session,
        pytest.raises(TextError) as caught,
    ):
        session.predict([("good", "film"), text])
    assert caught.value.problems == {1: problem}
    assert caught.value.hint.startswith("Give each as a pair: a question, and the context")


def expected_answer(context):
    words = context.split()
    ids = [WORDS.index(word) for word in words]
    (first, last), logit, _ = slow_best(TABLE[ids, 0], TABLE[ids, 1])
    return " ".join(words[first : last + 1]), logit


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_session_answers_questions(tmp_path, side):
    settings = Tokenization("tokenizer.json", max_length=16, pad_side=side)
    pairs = [
        ("very good", "the film a b"),
        ("a", "not the very bad film the a good b " * 4),
        ("good film", "b"),
    ]
    bundle = write_reader(tmp_path / "reader", tokenization=settings)
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        answers = session.predict(pairs)
        alone = session.predict(pairs[1])
        report = session.report
    for answer, (_, context) in zip(answers, pairs, strict=True):
        assert isinstance(answer, TextAnswer)
        assert context[answer.start : answer.end] == answer.text
        assert 0 < answer.score <= 1
    assert [answers[0].text, answers[2].text] == [expected_answer(pairs[0][1])[0], "b"]
    assert answers[2].score == pytest.approx(1)
    # Windows hold 11 tokens: as long as the answer is no longer, it is the context's best.
    assert 0 < len(answers[1].text.split()) <= 11
    assert alone == answers[1]
    assert (report.texts, report.truncated) == (4, 0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_moves_no_answer(tmp_path, side):
    settings = Tokenization("tokenizer.json", max_length=16, pad_side=side)
    bundle = write_reader(tmp_path / "reader", tokenization=settings)
    pairs = [("a", "the film a b"), ("very good", "not the very bad film the a good b")]
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        runner = TextRunner(bundle, session.predict)
        pieces = runner.read(pairs).pieces
        assert len({piece.tokens for piece in pieces}) == 2
        assert runner.run(pieces) == [runner.run([piece])[0] for piece in pieces]


@pytest.mark.parametrize("place", [0, 17, 40])
def test_a_long_context_is_read_from_end_to_end(tmp_path, place):
    first = int(TABLE[4:, 0].argmax()) + 4
    last = int(TABLE[4:, 1].argmax()) + 4
    dull = WORDS[int(TABLE[4:].sum(axis=1).argmin()) + 4]
    words = [dull] * 40
    words[place:place] = [WORDS[first], WORDS[last]]
    bundle = write_reader(tmp_path / "reader", tokenization=TOKENIZATION)
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        answer = session.predict(("a", " ".join(words)))
    assert answer.text == f"{WORDS[first]} {WORDS[last]}"
    assert answer.start == len(" ".join(words[:place])) + (place > 0)


def test_a_line_of_output_names_the_answer(tmp_path):
    into = io.BytesIO()
    line = json.dumps({"id": 7, "text": "good", "text_pair": "film"}).encode()
    with tfx.open_session(write_reader(tmp_path / "reader"), backend="onnxruntime") as session:
        predict_stream(session, io.BytesIO(line), into, kind=FileFormat.JSONL, where="a.jsonl")
    found = json.loads(into.getvalue())
    assert found["answer"] == "film"
    assert (found["id"], found["start"], found["end"]) == (7, 0, 4)
    assert found["score"] == pytest.approx(1)


def test_logits_that_do_not_fit_the_tokens(tmp_path):
    with tfx.open_session(write_reader(tmp_path / "reader"), backend="onnxruntime") as session:
        run = session._executable.run
        session._executable.run = lambda feed: {k: v[:, :-1] for k, v in run(feed).items()}
        with pytest.raises(BundleError) as caught:
            session.predict(("good", "film"))
    assert str(caught.value) == (
        "reader: start_logits does not have the shape of the tokens, [1, 5]"
    )

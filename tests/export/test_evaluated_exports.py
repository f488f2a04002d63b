"""Exports of every head, measured: what PyTorch's own outputs make of the same samples."""

import json
import math

import pytest
import torch
import transformers
from support import checkpoints
from support.checkpoints import WORDS, write_checkpoint

import tfx
from tfx.export.pipeline import export_bundle
from tfx.recipe import ExportRecipe
from tfx.runtime.accuracy.datasets import read_dataset
from tfx.runtime.accuracy.evaluation import evaluate
from tfx.runtime.text.extraction import MAX_ANSWER_TOKENS

TAGS = ["O", "B-person", "I-person", "B-place", "I-place"]


def exported(folders, name, folder, task):
    return export_bundle(
        str(folder), folders.bundles / f"evaluated-{name}", ExportRecipe(task=task)
    )


def torch_outputs(folder, cls, *texts, types=True):
    """What transformers gives for a text, or a pair, tokenized by transformers itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    fed = tokenizer(
        *texts, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=types
    )
    offsets = fed.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        outputs = cls.from_pretrained(folder).eval()(**fed)
    return outputs, offsets, fed.sequence_ids(0), fed["input_ids"][0].numpy()


def words(rng, count):
    return " ".join(rng.choice(WORDS, count))


def test_questions_are_answered_as_by_transformers(folders, tmp_path, rng):
    cls = transformers.BertForQuestionAnswering
    folder = checkpoints.bert(folders.checkpoints / "reader", cls)
    asked = [(words(rng, 3), words(rng, count)) for count in (2, 9, 40)]
    expected = []
    for question, context in asked:
        outputs, offsets, sequences, _ = torch_outputs(folder, cls, question, context)
        starts, ends = outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy()
        own = [i for i, part in enumerate(sequences) if part == 1]
        runs = [(i, j) for i in own for j in own if i <= j < i + MAX_ANSWER_TOKENS]
        first, last = max(runs, key=lambda run: starts[run[0]] + ends[run[1]])
        expected.append(context[offsets[first][0] : offsets[last][1]])
    qas = [
        {"context": context, "qas": [{"question": question, "answers": [{"text": answer}]}]}
        for (question, context), answer in zip(asked, expected, strict=True)
    ]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": qas}]}))

    bundle = exported(folders, "reader", folder, "question-answering")
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        answers = session.predict(asked)
        found = evaluate(session, read_dataset(path), "exact-match")
        long = session.predict((words(rng, 5), words(rng, 300)))

    assert [answer.text for answer in answers] == expected
    assert (found.value, found.samples) == (1.0, 3)
    assert long.text


def test_words_are_tagged_as_by_transformers(folders, tmp_path, rng):
    cls = transformers.BertForTokenClassification
    folder = checkpoints.bert(
        folders.checkpoints / "tagger", cls, id2label=dict(enumerate(TAGS)), num_labels=len(TAGS)
    )
    sentences = [words(rng, int(count)) for count in rng.integers(3, 20, 12)]
    lines = []
    for sentence in sentences:
        outputs, _, sequences, _ = torch_outputs(folder, cls, sentence)
        best = outputs.logits[0].argmax(dim=-1).tolist()
        own = [best[i] for i, part in enumerate(sequences) if part == 0]
        assert len(own) == len(sentence.split())
        lines += [f"{word}\t{TAGS[i]}\n" for word, i in zip(sentence.split(), own, strict=True)]
        lines.append("\n")
    right = tmp_path / "dev.conll"
    right.write_text("".join(lines))
    none = tmp_path / "none.conll"
    none.write_text(
        "".join(line.partition("\t")[0] + "\tO\n" for line in lines[:-1] if line.strip())
    )

    bundle = exported(folders, "tagger", folder, "token-classification")
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        found = evaluate(session, read_dataset(right))
        missed = evaluate(session, read_dataset(none))

    assert (found.metric, found.value) == ("entity-f1", 1.0)
    assert found.rows[:, 0].sum() > 5
    assert missed.value == 0


def perplexity_guide(model, ids, size=64):
    """Mean loss of a text and how many tokens it is of, by Hugging Face's guide to perplexity."""
    nats, count, seen = 0.0, 0, 0
    for begin in range(0, ids.shape[1], size // 2):
        end = min(begin + size, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : seen - begin] = -100  # only context: what the window before has counted
        own = int((labels[:, 1:] != -100).sum())
        with torch.inference_mode():
            nats += model(ids[:, begin:end], labels=labels).loss.item() * own
        count, seen = count + own, end
        if end == ids.shape[1]:
            break
    return nats / count, count


def test_perplexity_is_that_of_transformers(folders, tmp_path, rng):
    cls = transformers.GPT2LMHeadModel
    config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=2,
        eos_token_id=3,
    )
    folder = write_checkpoint(folders.checkpoints / "writer", cls, config, std=0.3)
    # The last two are longer than what the model takes: they are read in windows.
    sentences = [words(rng, int(count)) for count in (*rng.integers(1, 30, 6), 80, 151)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = cls.from_pretrained(folder).eval()
    nats, count = 0.0, 0
    for sentence in sentences:
        mean, own = perplexity_guide(model, tokenizer(sentence, return_tensors="pt").input_ids)
        nats, count = nats + mean * own, count + own
    path = tmp_path / "test.txt"
    path.write_text("\n".join(sentences))

    bundle = exported(folders, "writer", folder, "text-generation")
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        found = evaluate(session, read_dataset(path))

    assert found.metric == "perplexity"
    assert found.value == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert found.rows[:, 1].sum() == count
    assert found.truncated == 0
    assert "texts longer than the model takes, and read in windows: 2" in found.warnings
    assert found.low < found.value < found.high

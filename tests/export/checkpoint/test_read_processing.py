import contextlib
import json

import pytest
import tokenizers
import transformers
from support.checkpoints import (
    POSITIONS,
    SPECIAL,
    WORDS,
    write_json,
    write_sentence_transformers,
    write_tokenizer,
)

from tfx.dtypes import DType
from tfx.errors import SourceError
from tfx.export.checkpoint.processing import classification_of, read_processing
from tfx.processing import Activation, Classification, Embedding, Pooling, Processing, Tokenization
from tfx.signature import ShapeRange, Signature, TensorSpec

TOKENS = ("batch", "sequence")


def signature(output="last_hidden_state", *, inputs="input_ids", longest=POSITIONS):
    return Signature(
        (TensorSpec(inputs, DType.INT64, TOKENS),),
        (TensorSpec(output, DType.FLOAT32, (*TOKENS, 32)),),
        {"sequence": ShapeRange(1, 1, longest)},
    )


CONFIG = transformers.BertConfig(id2label={0: "calm", 1: "cross", 2: "curious"})


@pytest.fixture
def folder(tmp_path):
    """A checkpoint without weights: only a tokenizer."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    write_tokenizer(path)
    return path


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "bundle"
    path.mkdir()
    return path


def read(folder, target, task="feature-extraction", of=None):
    return read_processing(folder, CONFIG, task, of or signature(), target)


def embedding_of(folder, target):
    processing, notes = read(folder, target)
    return processing.embedding, notes


# pooling

FLAGS = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LENGTH,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
}


@pytest.mark.parametrize(("flag", "pooling"), FLAGS.items())
def test_pooling_by_the_old_keys(flag, pooling, folder, target):
    write_sentence_transformers(folder, pooling=dict.fromkeys(FLAGS, False) | {flag: True})
    assert embedding_of(folder, target) == (Embedding("last_hidden_state", (pooling,)), ())


@pytest.mark.parametrize("pooling", Pooling)
def test_pooling_by_the_new_key(pooling, folder, target):
    write_sentence_transformers(folder, pooling={"pooling_mode": pooling.value})
    assert embedding_of(folder, target) == (Embedding("last_hidden_state", (pooling,)), ())


def test_several_poolings_are_concatenated(folder, target):
    write_sentence_transformers(folder, pooling={"pooling_mode": ["cls", "mean"]})
    embedding, _ = embedding_of(folder, target)
    assert embedding.pooling == (Pooling.CLS, Pooling.MEAN)


def test_several_poolings_by_the_old_keys_in_sentence_transformers_order(folder, target):
    """Its Pooling.forward appends cls, max, mean, mean_sqrt_len, weightedmean, lasttoken."""
    write_sentence_transformers(folder, pooling=dict.fromkeys(FLAGS, True))
    embedding, _ = embedding_of(folder, target)
    assert embedding.pooling == (
        Pooling.CLS,
        Pooling.MAX,
        Pooling.MEAN,
        Pooling.MEAN_SQRT_LENGTH,
        Pooling.LAST_TOKEN,
    )


@pytest.mark.parametrize("normalize", [False, True])
def test_normalize(normalize, folder, target):
    write_sentence_transformers(folder, normalize=normalize)
    embedding, notes = embedding_of(folder, target)
    assert embedding == Embedding("last_hidden_state", (Pooling.MEAN,), normalize)
    assert notes == ()


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": "guesswork"},
        {"pooling_mode": ["mean", "guesswork"]},
        {},
        {"pooling_mode": []},
    ],
)
def test_pooling_nobody_knows_is_a_note(pooling, folder, target):
    write_sentence_transformers(folder, pooling=pooling)
    assert embedding_of(folder, target) == (
        None,
        ("its pooling is not known here: predict gives token vectors",),
    )


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode": "weightedmean"}, {"pooling_mode_weightedmean_tokens": True}],
)
def test_weighted_mean_is_known_or_a_note(pooling, folder, target):
    write_sentence_transformers(folder, pooling=pooling)
    embedding, notes = embedding_of(folder, target)
    if "weightedmean" in set(Pooling):
        assert embedding.pooling == (Pooling("weightedmean"),)
    else:
        assert embedding is None
        assert len(notes) == 1


def test_dense_module_is_a_note(folder, target):
    write_sentence_transformers(folder, modules=("Dense",), normalize=True)
    assert embedding_of(folder, target) == (
        None,
        ("it has a Dense module: predict gives token vectors",),
    )


def test_default_prompt_is_a_note(folder, target):
    write_sentence_transformers(folder, prompts={"default_prompt_name": "query"})
    embedding, notes = embedding_of(folder, target)
    assert embedding is not None
    assert notes == ("its default prompt 'query' is not added: put it in the text",)


def test_no_embedding_without_sentence_transformers_files(folder, target):
    assert embedding_of(folder, target) == (None, ())


def test_no_embedding_from_a_head(folder, target):
    write_sentence_transformers(folder)
    processing, _ = read(folder, target, of=signature("logits"))
    assert processing.embedding is None


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("modules.json", "[", "Expecting value"),
        ("modules.json", "{}", "got dict, expected list"),
        ("1_Pooling/config.json", "{", "Expecting property name"),
        ("1_Pooling/config.json", "[1]", "got list, expected dict"),
        ("sentence_bert_config.json", "3", "got int, expected dict"),
        ("config_sentence_transformers.json", "\udcff", "'utf-8' codec can't decode"),
    ],
)
def test_damaged_json(file, text, problem, folder, target):
    write_sentence_transformers(folder)
    (folder / file).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SourceError) as caught:
        read(folder, target)
    assert str(caught.value).startswith(f"{folder / file} is damaged: ")
    assert problem in str(caught.value)


def test_modules_json_that_lists_no_modules(folder, target):
    write_sentence_transformers(folder)
    write_json(folder / "modules.json", [1])
    with pytest.raises(SourceError, match=r"modules\.json is damaged: 1 is not a module$"):
        read(folder, target)


@pytest.mark.parametrize("module", [{"type": None}, {}])
def test_module_without_a_type_is_a_note(module, folder, target):
    write_sentence_transformers(folder)
    write_json(folder / "modules.json", [module])
    embedding, notes = embedding_of(folder, target)
    assert embedding is None
    assert len(notes) == 1


# text


def test_tokenization(folder, target):
    processing, notes = read(folder, target)
    assert processing == Processing(Tokenization("tokenizer.json", POSITIONS, 0, "right"))
    assert notes == ()
    written = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
    assert written.encode("alpha beta").tokens == ["[CLS]", "alpha", "beta", "[SEP]"]


def test_written_tokenizer_neither_cuts_nor_pads(folder, target):
    source = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    source.enable_truncation(4)
    source.enable_padding(length=16)
    source.save(str(folder / "tokenizer.json"))
    read(folder, target)
    written = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
    assert len(written.encode("alpha " * 9).ids) == 11


@pytest.mark.parametrize(
    ("tokenizer", "positions", "sentence", "length"),
    [
        (64, 48, None, 48),
        (40, 48, None, 40),
        (64, 64, 32, 32),
        (64, 30, 32, 30),
        (10**30, 64, None, 64),
    ],
)
def test_length_is_the_smallest_limit(tokenizer, positions, sentence, length, folder, target):
    write_tokenizer(folder, model_max_length=tokenizer)
    write_sentence_transformers(folder, sentence={"max_seq_length": sentence})
    processing, _ = read(folder, target, of=signature(longest=positions))
    assert processing.tokenization.max_length == length


@pytest.mark.parametrize(("lower", "token"), [(True, "alpha"), (False, "[UNK]")])
def test_lower_casing(lower, token, folder, target):
    write_sentence_transformers(folder, sentence={"do_lower_case": lower})
    read(folder, target)
    written = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
    assert written.encode("ALPHA").tokens[1] == token


def test_lower_casing_keeps_the_normalizer(folder, target):
    source = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    source.normalizer = tokenizers.normalizers.Replace("_", " ")
    source.save(str(folder / "tokenizer.json"))
    write_sentence_transformers(folder, sentence={"do_lower_case": True})
    read(folder, target)
    written = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
    assert written.encode("ALPHA_Beta").tokens[1:3] == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("special", "pad_id"),
    [
        ({"pad_token": "[MASK]"}, SPECIAL.index("[MASK]")),
        ({"pad_token": None, "eos_token": "[SEP]"}, SPECIAL.index("[SEP]")),
        ({"pad_token": None}, 0),
    ],
    ids=["its own", "the end's", "none"],
)
def test_padding_token(special, pad_id, folder, target):
    write_tokenizer(folder, **special)
    processing, _ = read(folder, target)
    assert processing.tokenization.pad_id == pad_id


def test_padding_side(folder, target):
    write_tokenizer(folder, padding_side="left")
    processing, _ = read(folder, target)
    assert processing.tokenization.pad_side == "left"


def test_no_tokenizer_is_a_note(tmp_path, target):
    (tmp_path / "bare").mkdir()
    assert read(tmp_path / "bare", target) == (
        Processing(),
        ("the checkpoint has no tokenizer: predict takes arrays, not text",),
    )
    assert list(target.iterdir()) == []


def test_no_tokenizer_is_fine_for_images(tmp_path, target):
    (tmp_path / "bare").mkdir()
    assert read(tmp_path / "bare", target, of=signature(inputs="pixel_values")) == (
        Processing(),
        (),
    )


def test_damaged_tokenizer(folder, target):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match=r"^cannot load the tokenizer of ") as caught:
        read(folder, target)
    assert "\n" not in str(caught.value)


def test_tokenizer_code_never_runs(folder, target, tmp_path):
    ran = tmp_path / "ran"
    (folder / "custom.py").write_text(f"open({str(ran)!r}, 'w')\n")
    path = folder / "tokenizer_config.json"
    document = json.loads(path.read_text()) | {
        "tokenizer_class": "CustomTokenizer",
        "auto_map": {"AutoTokenizer": ["custom.CustomTokenizer", None]},
    }
    path.write_text(json.dumps(document))
    with contextlib.suppress(SourceError):
        read(folder, target)
    assert not ran.exists()


# labels


def test_labels_of_a_classifier(folder, target):
    processing, _ = read(folder, target, "text-classification", signature("logits"))
    assert processing.classification == Classification(
        "logits", ("calm", "cross", "curious"), Activation.SOFTMAX, False
    )


def test_labels_of_each_token(folder, target):
    processing, _ = read(folder, target, "token-classification", signature("logits"))
    assert processing.classification.per_token


@pytest.mark.parametrize("task", ["feature-extraction", "fill-mask", "question-answering"])
def test_no_labels_of_other_tasks(task, folder, target):
    processing, _ = read(folder, target, task, signature("logits"))
    assert processing.classification is None


def labels(count):
    return {"id2label": {index: f"L{index}" for index in range(count)}}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(
    ("config", "of_text", "of_tokens"),
    [
        (labels(3), Activation.SOFTMAX, Activation.SOFTMAX),
        (labels(1), Activation.SIGMOID, Activation.SOFTMAX),
        (
            labels(3) | {"problem_type": "multi_label_classification"},
            Activation.SIGMOID,
            Activation.SOFTMAX,
        ),
        (
            labels(3) | {"problem_type": "single_label_classification"},
            Activation.SOFTMAX,
            Activation.SOFTMAX,
        ),
        (labels(1) | {"problem_type": "regression"}, Activation.NONE, Activation.SOFTMAX),
    ],
)
def test_activation_is_that_of_the_pipelines(config, of_text, of_tokens, per_token):
    found = classification_of(transformers.BertConfig(**config), per_token=per_token)
    assert found.activation is (of_tokens if per_token else of_text)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("torch.nn.modules.linear.Identity", Activation.NONE),
        ("torch.nn.modules.activation.Sigmoid", Activation.SIGMOID),
    ],
)
def test_activation_a_cross_encoder_names(name, activation):
    for said in (
        {"sentence_transformers": {"activation_fn": name}},
        {"sbert_ce_default_activation_function": name},
    ):
        config = transformers.BertConfig(**labels(1), **said)
        assert classification_of(config, per_token=False).activation is activation


def test_labels_follow_the_index_not_the_order_written():
    config = transformers.BertConfig(id2label={2: "c", 0: "a", 1: "b", 10: "d"})
    assert classification_of(config, per_token=False).labels == ("a", "b", "c", "d")


def test_words_of_the_test_tokenizer_are_its_vocabulary():
    assert len(set(SPECIAL + WORDS)) == len(SPECIAL) + len(WORDS)

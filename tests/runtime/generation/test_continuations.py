"""Prompts to tokens and tokens to growing text: characters of several tokens, stops, chats."""

import pytest
from support.bundles import manifest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tfx.bundle import Bundle
from tfx.dtypes import DType
from tfx.errors import BackendError, BundleError, FeedError
from tfx.processing import Generation, Processing, Tokenization
from tfx.runtime.generation import continuations
from tfx.runtime.generation.continuations import Continuation, Prompt, Stops, Writer
from tfx.signature import ShapeRange, Signature, TensorSpec

CHAT = [{"role": "user", "content": "ab"}]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}:{{ message.content }};"
    "{% endfor %}{% if add_generation_prompt %}me:{% endif %}"
)


def bytes_tokenizer() -> Tokenizer:
    """A token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def writer(folder, *, template="", tokenizer=True) -> Writer:
    signature = Signature(
        (TensorSpec("input_ids", DType.INT64, ("batch", "sequence")),),
        (TensorSpec("logits", DType.FLOAT32, ("batch", "sequence", 256)),),
        {"batch": ShapeRange(1, 1, 4)},
    )
    if tokenizer:
        bytes_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat.jinja").write_text(template)
    processing = Processing(
        Tokenization("tokenizer.json", 64) if tokenizer else None,
        generation=Generation((0,), "chat.jinja" if template else "", {"bos_token": "<"}),
    )
    return Writer(Bundle(folder, manifest(signature=signature, processing=processing), ""))


def written(text: str, *stops: str, prompt: str = "x") -> list[str]:
    """What each byte of a text adds, up to where it stops; the rest with the last."""
    tokenizer = bytes_tokenizer()
    one = Continuation(tokenizer, Prompt(tuple(tokenizer.encode(prompt).ids)), Stops(stops))
    added = []
    for token in tokenizer.encode(text).ids:
        more, stopped = one.add(token)
        added.append(more)
        if stopped:
            return added
    return [*added, one.flush()]


def test_a_character_comes_whole():
    assert written("aé!") == ["a", "", "é", "!", ""]


def test_half_a_character_is_given_at_the_end():
    tokenizer = bytes_tokenizer()
    one = Continuation(tokenizer, Prompt((5,)), Stops())
    assert one.add(tokenizer.encode("é").ids[0]) == ("", False)
    assert one.flush() == "\ufffd"


def test_what_may_be_a_stop_is_held_back():
    assert written("ab-c--d", "--") == ["a", "b", "", "-c", "", ""]


def test_what_was_held_back_comes_at_the_end():
    assert written("ab-", "--") == ["a", "b", "", "-"]


def test_the_first_of_several_stops_counts():
    assert "".join(written("abcd", "d", "bc")) == "a"


def test_of_stops_that_end_together_the_longer_is_taken():
    assert "".join(written("abcd", "bc", "abc")) == ""


def test_a_text_may_fill_the_room_there_is(tmp_path):
    one = writer(tmp_path)
    assert len(one.read([5] * 60, 4, 64).prompts[0].ids) == 60
    with pytest.raises(FeedError, match="has 60 tokens and is to get 5 more"):
        one.read([5] * 60, 5, 64)
    assert one.read([255], 1, 64).prompts[0].ids == (255,)
    with pytest.raises(FeedError, match=r"token 256, the vocabulary is 0\.\.255"):
        one.read([256], 1, 64)


def test_a_stop_is_any_token_of_the_vocabulary(tmp_path):
    one = writer(tmp_path)
    assert one.stops([0, 255]).ids == {0, 255}
    with pytest.raises(FeedError, match=r"token 256, the vocabulary is 0\.\.255"):
        one.stops([256])


def test_an_end_token_has_no_text():
    tokenizer = bytes_tokenizer()
    one = Continuation(tokenizer, Prompt((5,)), Stops(("--",)))
    one.add(tokenizer.encode("-").ids[0])
    assert one.close(0) == "-"
    assert one.over
    assert one.count == 2


def test_a_chat_goes_through_its_template(tmp_path):
    one = writer(tmp_path, template=TEMPLATE)
    assert one.chat(CHAT) == "<user:ab;me:"
    read = one.read(CHAT, 4, 64)
    assert read.single
    assert one.tokenizer.decode(list(read.prompts[0].ids)) == "<user:ab;me:"
    assert len(one.read([CHAT, CHAT], 4, 64).prompts) == 2


def test_a_template_that_refuses(tmp_path):
    one = writer(tmp_path, template="{{ raise_exception('no system') }}")
    with pytest.raises(FeedError, match="the chat template refuses the messages: no system"):
        one.chat(CHAT)


def test_a_template_runs_in_a_sandbox(tmp_path):
    one = writer(tmp_path, template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(FeedError, match="the chat template refuses the messages: access to"):
        one.chat(CHAT)


def test_no_template(tmp_path):
    with pytest.raises(FeedError, match="has no chat template") as caught:
        writer(tmp_path).read(CHAT, 4, 64)
    assert caught.value.hint == "Write the prompt as one text."


def test_a_message_without_a_role(tmp_path):
    with pytest.raises(
        FeedError, match="a message of the chat has no role: got 'content'"
    ) as error:
        writer(tmp_path, template=TEMPLATE).chat([*CHAT, {"content": "a"}])
    assert error.value.hint == 'Write each message as {"role": "user", "content": ...}.'


def test_jinja_is_not_installed(tmp_path, monkeypatch):
    def missing(name):
        raise BackendError(f"{name} is not installed")

    monkeypatch.setattr(continuations, "need", missing)
    with pytest.raises(BackendError, match="jinja2 is not installed"):
        writer(tmp_path, template=TEMPLATE).chat(CHAT)


def test_no_tokenizer(tmp_path):
    one = writer(tmp_path, tokenizer=False)
    assert one.read([1, 2], 4, 64).prompts == (Prompt((1, 2)),)
    for ask in (lambda: one.read("ab", 4, 64), lambda: one.stops(("ab",))):
        with pytest.raises(FeedError, match="has no tokenizer: it takes token ids") as caught:
            ask()
        assert caught.value.hint == (
            "Give each prompt as a list of token ids, in Python; a command takes none."
        )
    assert one.begin(Prompt((1,)), Stops()).add(5) == ("", False)


def test_a_damaged_tokenizer(tmp_path):
    one = writer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged"):
        one.read("ab", 4, 64)

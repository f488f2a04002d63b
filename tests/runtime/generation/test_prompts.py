"""Prompts of files and of stdin, and what is written after them as JSONL."""

import io
import json

import pytest
from click.testing import CliRunner
from support.generators import write_generator

import tfx
from tfx.cli import main
from tfx.errors import DataError
from tfx.export.pipeline import export_bundles
from tfx.runtime.generation.generator import Finish, Generated
from tfx.runtime.generation.prompts import Asked, read_prompts, written_line
from tfx.runtime.records import FileFormat

CHAT = [{"role": "user", "content": "alpha"}]


def read(text, kind=FileFormat.JSONL):
    return read_prompts(io.BytesIO(text.encode()), "prompts", kind)


def test_lines_of_text():
    assert read("a b\n\n  \nc\n", FileFormat.TEXT) == [
        Asked("a b", 1, {"text": "a b"}),
        Asked("c", 4, {"text": "c"}),
    ]


def test_lines_of_jsonl_keep_their_fields():
    lines = ["a", {"text": "b", "id": 3}, {"prompt": "c"}, {"messages": CHAT, "text": "d"}]
    found = read("\n".join(map(json.dumps, lines)))
    assert [one.prompt for one in found] == ["a", "b", "c", CHAT]
    assert [one.fields for one in found] == [{"text": "a"}, *lines[1:]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "prompts, line 1: not JSON"),
        ("3", "prompts, line 1: got a JSON number, expected a string or an object"),
        ('"a"\n{"id": 1}', "prompts, line 2: has no prompt"),
        ('{"text": 1}', "prompts, line 1: 'text' is no text"),
        ('{"messages": []}', "prompts, line 1: 'messages' is no list of objects with a role"),
        ('{"messages": [{"content": "a"}]}', "'messages' is no list of objects with a role"),
        ("", "prompts has no prompts"),
    ],
)
def test_what_is_no_prompt(text, message):
    with pytest.raises(DataError) as caught:
        read(text)
    assert message in str(caught.value)


def test_arrays_are_no_prompts():
    with pytest.raises(DataError, match="prompts holds arrays, expected texts"):
        read("", FileFormat.NPZ)


def test_a_field_of_the_answers_name():
    one = Generated(" c", (5,), Finish.LENGTH)
    line = json.loads(written_line(Asked("a", 1, {"text": "a"}), one, "here"))
    assert line == {"text": "a", "generated": " c", "ids": [5], "finish": "length"}
    with pytest.raises(DataError, match="here, line 2: the field 'ids' is the answer's as well"):
        written_line(Asked("a", 2, {"ids": 1}), one, "here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    source = write_generator(folder / "source", "gpt2")
    return str(export_bundles(str(source), folder / "bundle", cache=True)[0].path)


def run(*arguments, stdin=""):
    return CliRunner().invoke(main, ["generate", *arguments, "--max-new-tokens", "4"], input=stdin)


def test_jsonl_in_and_out_is_what_generate_gives(bundle, tmp_path):
    texts = ["alpha", "beta of", "gamma"] * 3
    lines = [{"text": text, "id": number} for number, text in enumerate(texts)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    options = {"temperature": 1.0, "seed": 3}
    with tfx.open_session(bundle) as session:
        expected = session.generate(texts, max_new_tokens=4, **options)
    result = run(bundle, "--file", str(file), "--temperature", "1", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["id"] for line in found] == [*range(9)]
    assert [line["generated"] for line in found] == [one.text for one in expected]
    assert [tuple(line["ids"]) for line in found] == [one.ids for one in expected]
    piped = run(bundle, "--input-format", "jsonl", stdin=file.read_text())
    assert len(piped.stdout.splitlines()) == 9


def test_stdin_is_read_where_no_prompt_is_given(bundle):
    streamed = run(bundle, "-p", "alpha of").stdout
    assert run(bundle, stdin="alpha of\n").stdout == streamed
    assert run(bundle, "--file", "-", stdin="alpha of\n").stdout == streamed
    assert len(run(bundle, "--jsonl", stdin="alpha\nbeta\n").stdout.splitlines()) == 2
    nothing = run(bundle, "--file", "-")
    assert nothing.exit_code == 1
    assert "stdin has no prompts" in nothing.stderr


@pytest.mark.parametrize("other", ["--json", "--translate"])
def test_lines_and_another_form(bundle, other):
    refused = run(bundle, "-p", "alpha", "--jsonl", other)
    assert refused.exit_code == 2
    assert f"--jsonl is not for {other}" in refused.stderr

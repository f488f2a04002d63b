"""``tfx generate``: streams one prompt, lists several, and says what is wrong."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from support.generators import write_generator

import tfx
from tfx.cli import main
from tfx.export.pipeline import export_bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    source = write_generator(folder / "source", "gpt2")
    return str(export_bundles(str(source), folder / "bundle", cache=True)[0].path)


def run(*arguments):
    return CliRunner().invoke(main, ["generate", *arguments])


def test_one_prompt_is_written_as_it_comes(bundle):
    with tfx.open_session(bundle) as session:
        expected = session.generate("alpha of", max_new_tokens=8)
    result = run(bundle, "-p", "alpha of", "--max-new-tokens", "8")
    assert result.exit_code == 0
    assert result.stdout == expected.text + "\n"
    assert f"{len(expected.ids)} tokens in " in result.stderr


def test_several_as_json(bundle):
    options = ("--max-new-tokens", "4", "--temperature", "1", "--seed", "3")
    result = run(bundle, "-p", "alpha", "-p", "beta", "--json", *options)
    texts = json.loads(result.stdout)["texts"]
    assert [set(text) for text in texts] == [{"text", "ids", "finish"}] * 2
    again = run(bundle, "-p", "alpha", "-p", "beta", "--json", *options)
    assert json.loads(again.stdout)["texts"] == texts


def test_several_and_beams_are_lines(bundle):
    result = run(bundle, "-p", "alpha", "-p", "beta", "--max-new-tokens", "4", "--beams", "2")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2


def test_nothing_to_go_on_from(bundle):
    result = run(bundle)
    assert result.exit_code == 2
    assert "nothing to go on from: give --prompt, --file or --chat" in result.stderr


def test_a_chat_without_a_template(bundle):
    result = run(bundle, "--chat", "hello")
    assert result.exit_code == 1
    assert "has no chat template" in result.stderr
    assert "hint: Write the prompt as one text." in result.stderr


def test_prompts_of_a_file(bundle, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("alpha\n\nbeta of\n" * 5)
    result = run(bundle, "--file", str(file), "--max-new-tokens", "3", "--json")
    assert result.exit_code == 0, result.stderr
    texts = json.loads(result.stdout)["texts"]
    assert len(texts) == 10
    assert texts[0] == texts[2]
    with tfx.open_session(bundle) as session:
        assert texts[1]["text"] == session.generate("beta of", max_new_tokens=3).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "prompts.txt has no prompts"),
        (b"a\n\xff", "prompts.txt, line 2: not UTF-8: byte 0xff at 0"),
    ],
)
def test_a_file_without_prompts(bundle, tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    result = run(bundle, "--file", str(file))
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-p", "alpha", "--max-new-tokens", "500"), "is to get 500 more, the model takes 64"),
        (("-p", "alpha " * 80), "Shorten the prompts"),
        (("-p", "alpha", "--max-new-tokens", "4", "--stop", ""), "expected a text or a token id"),
        (("-p", "alpha", "--top-p", "0.5"), "needs a temperature above 0"),
        (("-p", "alpha", "--beams", "2", "--temperature", "1"), "beams do not draw"),
    ],
)
def test_what_cannot_be_generated(bundle, options, message):
    result = run(bundle, *options)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_reader_of_a_stream_may_go_away(bundle):
    """As ``| head`` does: no traceback, and nothing left to flush."""
    command = [
        sys.executable,
        "-m",
        "tfx",
        "generate",
        bundle,
        "-p",
        "alpha",
        "--max-new-tokens",
        "40",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_ctrl_c_ends_a_stream_without_a_traceback(bundle, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfx.runtime.generation.decoder.Decoder.step", interrupted)
    result = run(bundle, "-p", "alpha of", "--max-new-tokens", "8")
    assert result.exit_code == 1
    assert "Aborted!" in result.stderr

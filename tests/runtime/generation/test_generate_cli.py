"""``tfx generate``: streams one prompt, lists several, and says what is wrong."""

import json

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
    assert "nothing to go on from: give --prompt or --chat" in result.stderr


def test_a_chat_without_a_template(bundle):
    result = run(bundle, "--chat", "hello")
    assert result.exit_code == 1
    assert "has no chat template" in result.stderr
    assert "hint: Write the prompt as one text." in result.stderr

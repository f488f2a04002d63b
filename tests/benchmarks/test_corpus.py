"""Texts beside those of the comparison."""

from click.testing import CliRunner
from support.sentences import write_data

from tfx.bench.corpus import corpus
from tfx.bench.peers.sentences import read_sentences


def run(*arguments):
    return CliRunner().invoke(corpus, [str(argument) for argument in arguments])


def test_it_writes_what_the_comparison_leaves(tmp_path):
    data, output = write_data(tmp_path / "data"), tmp_path / "texts.txt"
    done = run("--data", data, "-o", output, "--count", 12, "--besides", 20, "--seed", 3)
    assert done.exit_code == 0, done.output
    texts = output.read_text().splitlines()
    assert texts == read_sentences(data, 12, 3, skip=20)
    assert not set(texts) & set(read_sentences(data, 20, 3))


def test_by_default_it_leaves_out_what_is_measured_by_default(tmp_path):
    data = write_data(tmp_path / "data", sentences=12_000, prose=700)
    done = run("--data", data, "-o", tmp_path / "t.txt", "--count", 4)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "t.txt").read_text().splitlines() == read_sentences(data, 4, skip=2000)


def test_what_is_wrong_is_said_without_a_traceback(tmp_path):
    data = write_data(tmp_path / "data")
    done = run("--data", data, "-o", tmp_path / "t.txt")
    assert done.exit_code == 1
    assert "got 2000 texts to make, expected fewer" in done.output
    done = run("--data", data, "-o", tmp_path, "--count", 4, "--besides", 0)
    assert done.exit_code == 1
    assert f"cannot write {tmp_path}: Is a directory" in done.output

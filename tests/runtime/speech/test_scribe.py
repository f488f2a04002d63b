"""`transcribe`: Whisper's two graphs and transformers' text; a CTC head; what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from support.bundles import write_bundle
from support.hearing import spelled, write_listener, write_speller
from support.sounds import write_sound
from support.speech import WHISPER_BINS, whisper

from tfx.bundle import open_bundle
from tfx.cli import main
from tfx.errors import FeedError
from tfx.export.pipeline import export_bundles
from tfx.processing import AudioFeatures, AudioPreparation
from tfx.runtime.opening import open_session
from tfx.runtime.speech.fallback import Fallback
from tfx.runtime.speech.transcript import Transcript


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Threads cost more than they bring where every product is tiny.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dictated(tmp_path_factory):
    root = tmp_path_factory.mktemp("whisper")
    export_bundles(str(whisper(root / "model", 0, 1.5)), root / "w", cache=None)
    return root


@pytest.fixture(scope="module")
def session(dictated):
    with open_session(dictated / "w-decoder", backend="onnxruntime", threads=1) as opened:
        yield opened


def test_the_encoder_runs_as_its_decoder_does(session):
    facts, heard = session.report.facts, session.encoder().report.facts
    assert (heard.backend, heard.device, heard.threads) == ("onnxruntime", "cpu", 1)
    assert (heard.precision, heard.streams) == (facts.precision, 1)


def sound(rng, seconds):
    steps = rng.normal(size=int(seconds * 10) + 1).repeat(1600)[: int(seconds * 16000)]
    return (rng.normal(size=len(steps)) * 0.1 * steps).astype(np.float32)


def theirs(root, samples, **options):
    model = transformers.WhisperForConditionalGeneration.from_pretrained(root / "model").eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(root / "model")
    long = len(samples) > 16000
    more = {"truncation": False, "padding": "longest"} if long else {}
    given = extractor(samples, sampling_rate=16000, return_tensors="pt", **more)
    with torch.no_grad():
        return model.generate(given.input_features, return_segments=True, **options)


def words(ids):
    return [f"w{token}" for token in ids.tolist() if token < 80]


@pytest.mark.parametrize("seconds", [0.6, 3.3])
@pytest.mark.parametrize("language", ["de", None])
def test_the_words_of_transformers(seconds, language, dictated, session, rng):
    samples = sound(rng, seconds)
    wanted = theirs(
        dictated, samples, language=language, task="transcribe", return_timestamps=True
    )["segments"][0]
    found = session.transcribe(samples, language=language, timestamps=True)
    assert [one.text.split() for one in found.segments] == [words(one["tokens"]) for one in wanted]
    assert [one.start_s for one in found.segments] == [
        pytest.approx(float(one["start"]), abs=1e-3) for one in wanted
    ]
    assert found.text.split() == [word for one in wanted for word in words(one["tokens"])]
    assert language is None or found.language == language


def test_a_short_sound_without_times(dictated, session, rng):
    samples = sound(rng, 0.6)
    wanted = theirs(dictated, samples, language="en", task="translate", return_timestamps=False)
    found = session.transcribe(samples, language="en", task="translate")
    assert found == Transcript(" ".join(words(wanted["sequences"][0])), "en")


def test_what_the_bundles_say(dictated):
    encoder, decoder = (open_bundle(dictated / f"w-{part}") for part in ("encoder", "decoder"))
    assert encoder.manifest.processing.audio == AudioPreparation(
        "input_features", AudioFeatures.LOG_MEL, seconds=1, mel_bins=WHISPER_BINS
    )
    assert decoder.manifest.processing.dictation is not None
    assert decoder.manifest.notes == ()


def test_files_and_lists(session, tmp_path, rng):
    path = write_sound(tmp_path / "a.wav", sound(rng, 0.4), 8000)
    first, second = session.transcribe([path, str(path)], language="en")
    assert first == second
    assert first.text


def test_the_command(dictated, tmp_path, rng):
    path = write_sound(tmp_path / "a.wav", sound(rng, 1.5))
    arguments = ["transcribe", str(path), "--bundle", str(dictated / "w-decoder")]
    arguments += ["--language", "de", "--timestamps", "--threads", "1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    assert "1.5 s of sound in" in done.stderr
    document = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    (found,) = document["transcripts"]
    assert (found["audio"], found["language"]) == (str(path), "de")
    assert [line.split()[2:] for line in done.stdout.splitlines()] == [
        one["text"].split() for one in found["segments"]
    ]


def test_the_command_with_a_ctc_head(tmp_path):
    write_speller(tmp_path / "speller")
    paths = [str(write_sound(tmp_path / f"{x}.wav", spelled(x), 8000)) for x in ("A_A", "B|B")]
    done = CliRunner().invoke(main, ["transcribe", *paths, "--bundle", str(tmp_path / "speller")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "AA\nB B\n"


def transcribed(*arguments):
    return CliRunner().invoke(main, ["transcribe", *map(str, arguments)])


def test_a_folder_and_lines_of_json(tmp_path):
    write_speller(tmp_path / "speller")
    folder = tmp_path / "wav"
    folder.mkdir()
    for name, said in (("b.WAV", "B|B"), ("a.wav", "A_A")):
        write_sound(folder / name, spelled(said), 8000)
    (folder / "notes.txt").write_text("no sound")
    done = transcribed(folder, "--bundle", tmp_path / "speller")
    assert (done.exit_code, done.stdout) == (0, "AA\nB B\n")
    done = transcribed(folder, folder / "a.wav", "--bundle", tmp_path / "speller", "--jsonl")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["AA", "B B", "AA"]
    assert lines[1]["audio"] == str(folder / "b.WAV")
    done = transcribed(folder, "--bundle", tmp_path / "speller", "--jsonl", "--json")
    assert done.exit_code == 2
    assert "--jsonl is not for --json" in done.stderr
    (tmp_path / "empty").mkdir()
    done = transcribed(tmp_path / "empty", "--bundle", tmp_path / "speller")
    assert done.exit_code == 1
    assert "empty has no WAV files\nhint: Name a folder with files in it." in done.stderr


@pytest.mark.parametrize("kind", [[], ["--json"], ["--jsonl"]])
def test_a_file_that_fails_loses_no_other(tmp_path, kind):
    write_speller(tmp_path / "speller")
    good = [write_sound(tmp_path / f"{x}.wav", spelled(x), 8000) for x in ("A", "B")]
    short = write_sound(tmp_path / "short.wav", np.zeros(20, np.float32), 8000)
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    done = transcribed(good[0], bad, short, good[1], "--bundle", tmp_path / "speller", *kind)
    assert done.exit_code == 1
    assert f"error: {bad} is not a WAV file\n" in done.stderr
    assert f"error: {short}: a sound is 0.003 s, speller takes 0.013 s or more" in done.stderr
    assert "error: 2 of 4 files could not be written down" in done.stderr
    if not kind:
        assert done.stdout == "A\nB\n"
        return
    found = list(map(json.loads, done.stdout.splitlines())) if kind == ["--jsonl"] else []
    found = found or json.loads(done.stdout)["transcripts"]
    assert [one.get("text") for one in found] == ["A", None, None, "B"]
    assert found[1] == {"audio": str(bad), "error": f"{bad} is not a WAV file"}


def test_a_file_alone_that_fails(tmp_path):
    write_speller(tmp_path / "speller")
    (tmp_path / "bad.wav").write_text("no sound")
    done = transcribed(tmp_path / "bad.wav", "--bundle", tmp_path / "speller")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "bad.wav is not a WAV file\nhint: " in done.stderr


def test_what_cannot_be_done_is_said_once_and_not_of_each_file(tmp_path):
    write_speller(tmp_path / "speller")
    paths = [write_sound(tmp_path / f"{x}.wav", spelled(x), 8000) for x in ("A", "B")]
    done = transcribed(*paths, "--bundle", tmp_path / "speller", "--language", "en")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: speller writes down what it hears, and takes no language",
        "hint: Leave them out.",
    ]


def test_a_bundle_that_hears_nothing_is_said_once(tmp_path):
    write_bundle(tmp_path / "arrays")
    path = write_sound(tmp_path / "a.wav", spelled("A"), 8000)
    done = transcribed(path, path, "--bundle", tmp_path / "arrays")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: arrays does not write down what is said\nhint: Open the")
    assert done.stderr.count("error:") == 1


def test_a_text_that_went_wrong_is_drawn_again(dictated, session, tmp_path, rng):
    samples = sound(rng, 0.9)
    path = write_sound(tmp_path / "a.wav", samples)
    options = ["--bundle", dictated / "w-decoder", "--language", "en", "--threads", 1]
    done = transcribed(path, *options, "--fallback")
    assert done.exit_code == 0, done.stderr
    expected = session.transcribe(path, language="en", fallback=Fallback()).text
    assert done.stdout == f"{expected}\n"
    assert expected != session.transcribe(path, language="en").text


def test_error_rates_of_whisper(dictated, session, tmp_path, rng):
    paths = [write_sound(tmp_path / f"{one}.wav", sound(rng, one / 2)) for one in (1, 3)]
    first, second = (session.transcribe(path).text for path in paths)
    rows = ((paths[0].name, first), (paths[1].name, f"{second} more words"))
    listed = tmp_path / "said.tsv"
    listed.write_text("audio\ttext\n" + "".join(f"{name}\t{text}\n" for name, text in rows))
    arguments = ["evaluate", str(dictated / "w-decoder"), "--eval", str(listed), "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["evaluation"]
    words = len(first.split()) + len(second.split()) + 2
    assert (found["metric"], found["value"]) == ("wer", pytest.approx(2 / words))


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"language": "en"}, "language"),
        ({"task": "translate", "timestamps": True}, "task, timestamps"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
    ],
)
def test_a_ctc_head_takes_no_wishes(wishes, named, tmp_path):
    with open_session(write_speller(tmp_path / "speller"), backend="onnxruntime") as opened:
        with pytest.raises(FeedError, match=f"writes down what it hears, and takes no {named}"):
            opened.transcribe(spelled("A"), **wishes)
        with pytest.raises(FeedError, match="got an empty list, expected at least one sound"):
            opened.transcribe([])


@pytest.mark.parametrize("write", [write_listener, write_bundle])
def test_a_bundle_that_writes_nothing_down(write, tmp_path):
    with (
        open_session(write(tmp_path / "other"), backend="onnxruntime") as opened,
        pytest.raises(FeedError, match="other does not write down what is said") as caught,
    ):
        opened.transcribe(spelled("A"))
    assert caught.value.hint.startswith("Open the decoder")


def test_sound_that_is_none(session):
    with pytest.raises(FeedError, match="a sound holds NaN or infinity"):
        session.transcribe(np.full(800, np.nan, np.float32))

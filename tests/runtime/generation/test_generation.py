"""Text that goes on: token for token what transformers generates, and where it ends."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from support.generators import write_generator

import tfx
from tfx.errors import BackendError, FeedError
from tfx.export.pipeline import export_bundles
from tfx.runtime.backend import RunOptions, get_backend
from tfx.runtime.generation import decoder as decoders
from tfx.runtime.generation.decoder import Decoder
from tfx.runtime.generation.generator import Finish, Options, Token

LENGTHS = (3, 7, 1, 5)


@pytest.fixture(scope="module", params=["gpt2", "mistral", "gpt_neo"])
def family(request, tmp_path_factory):
    return export(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return export(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def session(llama):
    with tfx.open_session(llama[1], backend="onnxruntime") as opened:
        yield opened


def export(folder, family):
    source = write_generator(folder / "source", family)
    return source, export_bundles(str(source), folder / "bundle", cache=True)[0]


def prompts_of(rng):
    return [rng.integers(4, 60, length).tolist() for length in LENGTHS]


def of_transformers(source, prompts, **options):
    """What transformers' generate adds to prompts padded on the left."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    found = model.generate(ids, attention_mask=mask, do_sample=False, **options)[:, width:]
    return [row[: row.index(3) + 1] if 3 in row else row for row in found.tolist()]


def test_greedy_is_what_transformers_generates(family, rng):
    source, bundle = family
    prompts = prompts_of(rng)
    expected = of_transformers(source, prompts, max_new_tokens=40)
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        found = session.generate(prompts, max_new_tokens=40)
        alone = [session.generate(prompt, max_new_tokens=40) for prompt in prompts]
    assert [list(one.ids) for one in found] == expected
    assert alone == found
    ends = {one.finish for one in found}
    assert ends <= {Finish.END, Finish.LENGTH}
    for one in found:
        assert (one.ids[-1] == 3) == (one.finish is Finish.END)


def test_beams_are_what_transformers_finds(family, rng):
    source, bundle = family
    prompts = prompts_of(rng)
    expected = of_transformers(source, prompts, max_new_tokens=16, num_beams=4)
    with tfx.open_session(bundle, backend="onnxruntime") as session:
        found = session.generate(prompts, max_new_tokens=16, num_beams=4)
    assert [list(one.ids) for one in found] == expected


def test_repetition_penalty_is_transformers(llama, session, rng):
    prompt = prompts_of(rng)[1]
    expected = of_transformers(llama[0], [prompt], max_new_tokens=12, repetition_penalty=1.5)
    found = session.generate(prompt, max_new_tokens=12, repetition_penalty=1.5)
    assert list(found.ids) == expected[0]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_backend_writes_the_same(llama, session, rng, backend):
    prompts = prompts_of(rng)
    with tfx.open_session(llama[1], backend=backend) as other:
        found = other.generate(prompts, max_new_tokens=8)
    assert found == session.generate(prompts, max_new_tokens=8)


def test_openvino_keeps_no_rotary_positions_that_it_reads_as_others(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with tfx.open_session(llama[1], backend="openvino"):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_onnxruntime_writes_in_place_and_copies_to_grow_only(session, rng, monkeypatch):
    decoder = Decoder(session._executable, session.signature)
    ids = rng.integers(4, 60, (2, 4))
    monkeypatch.setattr(decoders, "SPARE_PLACES", 34)
    decoder.start(ids, np.ones_like(ids), room=44)
    before = decoder.stepping._cache["past_key_0"]
    for _ in range(33):
        decoder.step(np.array([5, 6]))
    assert decoder.stepping._cache["past_key_0"] is before
    assert decoder.copied == 0
    assert before[:, :, 36].any()
    assert not before[:, :, 37].any()  # not written yet
    decoder.step(np.array([5, 6]))
    decoder.step(np.array([5, 6]))
    assert decoder.copied == 1
    assert decoder.stepping._cache["past_key_0"].shape[2] == 44


def test_logits_of_a_step_outlive_the_next(session, rng):
    decoder = Decoder(session._executable, session.signature)
    ids = rng.integers(4, 60, (2, 4))
    first = decoder.start(ids, np.ones_like(ids), room=8)
    kept = first.copy()
    decoder.step(np.array([5, 6]))
    np.testing.assert_array_equal(first, kept)


def test_stream_gives_what_generate_does(session, rng):
    prompts = prompts_of(rng)
    whole = session.generate(prompts, max_new_tokens=8, stop="delta")
    ids, texts, ends = {}, {}, {}
    for token in session.stream(prompts, max_new_tokens=8, stop="delta"):
        assert isinstance(token, Token)
        assert token.row not in ends
        ids.setdefault(token.row, []).append(token.id)
        texts[token.row] = texts.get(token.row, "") + token.text
        if token.finish is not None:
            ends[token.row] = token.finish
    for row, one in enumerate(whole):
        assert (one.ids, one.text, one.finish) == (tuple(ids[row]), texts[row], ends[row])


def test_a_stream_that_is_left_stops_running(session, monkeypatch):
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, t: steps.append(1) or step(self, t))
    stream = session.stream([5, 6], max_new_tokens=30)
    next(stream)
    next(stream)
    stream.close()
    assert len(steps) == 1
    assert session.generate([5, 6], max_new_tokens=2).ids  # the session goes on


def test_sampling_repeats_with_its_seed(session):
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 20, "max_new_tokens": 12}
    once = session.generate([5, 6], seed=1, **options)
    assert session.generate([5, 6], seed=1, **options) == once
    assert session.generate([[5, 6], [9]], seed=1, **options)[0] == once
    others = {session.generate([5, 6], seed=seed, **options).ids for seed in range(2, 6)}
    assert others != {once.ids}


def test_text_stops_before_a_token(session):
    free = session.generate("alpha beta", max_new_tokens=10)
    stop = next(token for token in free.ids if token != free.ids[0])
    found = session.generate("alpha beta", max_new_tokens=10, stop=stop)
    assert found.finish is Finish.STOP
    assert found.ids == free.ids[: free.ids.index(stop) + 1]


def test_beams_end_at_a_stop(llama, session, rng):
    """In the search, not after it: as transformers finishes the beams that meet one."""
    source, _ = llama
    prompts = prompts_of(rng)
    plain = [one.ids for one in session.generate(prompts, max_new_tokens=12, num_beams=3)]
    stops = list(dict.fromkeys(ids[1] for ids in plain))
    found = session.generate(prompts, max_new_tokens=12, num_beams=3, stop=stops)
    # For transformers' search they are tokens that end a text.
    expected = of_transformers(
        source,
        prompts,
        max_new_tokens=12,
        num_beams=3,
        length_penalty=1.0,
        eos_token_id=[3, *stops],
    )
    for one, row in zip(found, expected, strict=True):
        ends = [place for place, token in enumerate(row, 1) if token in stops]
        assert list(one.ids) == row[: ends[0] if ends else None]
    assert Finish.STOP in {one.finish for one in found}


def test_beams_end_at_a_stop_text(session):
    written = session.generate("alpha of", max_new_tokens=12, num_beams=3).text
    stop = written[4:7]
    found = session.generate("alpha of", max_new_tokens=12, num_beams=3, stop=[stop])
    assert found.finish is Finish.STOP or stop not in found.text
    assert stop not in found.text


def test_no_end_token_before_the_least_count(llama, session, rng):
    source, _ = llama
    prompts = prompts_of(rng)
    for beams in (1, 3):
        options = {"max_new_tokens": 10, "min_new_tokens": 10, "num_beams": beams}
        expected = of_transformers(source, prompts, eos_token_id=[3, 4, 5, 6, 7, 8], **options)
        found = session_with_ends(session, (3, 4, 5, 6, 7, 8)).generate(prompts, **options)
        assert [list(one.ids) for one in found] == expected


def session_with_ends(session, ends):
    """The session, of a bundle that ends texts with other tokens."""
    about = session.bundle.manifest
    generation = dataclasses.replace(about.processing.generation, end_ids=ends)
    processing = dataclasses.replace(about.processing, generation=generation)
    manifest = dataclasses.replace(about, processing=processing)
    session.bundle = dataclasses.replace(session.bundle, manifest=manifest)
    return session


def test_a_stream_may_be_left_and_another_begun(session):
    expected = session.generate("alpha of", max_new_tokens=8).text
    left = session.stream("alpha of", max_new_tokens=8)
    next(left)
    left.close()
    assert "".join(token.text for token in session.stream("alpha of", max_new_tokens=8)) == expected


def test_pytorch_reads_no_place_that_is_not_written(llama, rng):
    """Without padding its mask hides nothing, and transformers would leave it out in a step."""
    _, bundle = llama
    ids = rng.integers(4, 60, (1, 12))
    found = {}
    for backend in ("torch", "onnxruntime"):
        executable = get_backend(backend).load(bundle, RunOptions(threads=1))
        decoder = Decoder(executable, bundle.manifest.signature)
        decoder.start(ids[:, :6], np.ones_like(ids[:, :6]), 40)
        found[backend] = [decoder.step(ids[:, place]).copy() for place in range(6, 12)]
    np.testing.assert_allclose(found["torch"], found["onnxruntime"], atol=1e-4)


def test_two_threads_generate_at_once(session, rng):
    prompts = prompts_of(rng)
    expected = [session.generate(prompt, max_new_tokens=12) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: session.generate(one, max_new_tokens=12), prompts * 3))
    assert found == expected * 3


def test_more_prompts_than_a_batch(session, rng):
    prompts = [rng.integers(4, 60, 3).tolist() for _ in range(11)]
    found = session.generate(prompts, max_new_tokens=3)
    assert found[9] == session.generate(prompts[9], max_new_tokens=3)


@pytest.mark.parametrize(
    ("prompts", "options", "message", "hint"),
    [
        ([], {}, "got an empty list, expected at least one prompt", "Give a text, token ids"),
        (3, {}, "got int, expected at least one prompt", "Give a text, token ids"),
        ([[]], {}, "prompts[0]: has no tokens", "Give a text, token ids"),
        ([[5], [64]], {}, "prompts[1]: has token 64, the vocabulary is 0..63", "Give a text"),
        ([[1.5]], {}, "prompts[0]: got list, expected a text or token ids", "Give a text"),
        ("a\ud800", {}, "is not Unicode: half of a surrogate pair at character 1", "Give a text"),
        (
            [[5] * 60],
            {"max_new_tokens": 5},
            "has 60 tokens and is to get 5 more, the model takes 64",
            "Ask for 4 new tokens or fewer.",
        ),
        ([[5] * 70], {}, "has 70 tokens and is to get 64 more", "Shorten the prompts"),
        ([5], {"stop": 64}, "text cannot stop at: token 64, the vocabulary is 0..63", ""),
        ([5], {"stop": [""]}, "text cannot stop at: '', expected a text or a token id", ""),
        ([5], {"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 or more", ""),
        ([5], {"min_new_tokens": 5}, "min_new_tokens is 5, expected 0 to max_new_tokens, 4", ""),
        ([5], {"temperature": -1}, "temperature is -1, expected 0 or more", ""),
        ([5], {"top_k": -1}, "top_k is -1, expected 0 or more", ""),
        ([5], {"top_p": 0.0}, "top_p is 0.0, expected above 0 and at most 1", ""),
        ([5], {"top_p": 0.5}, "which needs a temperature above 0", ""),
        ([5], {"repetition_penalty": 0}, "repetition_penalty is 0, expected above 0", ""),
        ([5], {"seed": -1}, "seed is -1, expected 0 or more", ""),
        ([5], {"num_beams": 0}, "num_beams is 0, expected 1 or more", ""),
        ([5], {"num_beams": 2, "temperature": 1.0}, "beams do not draw", ""),
        ([5], {"num_beams": 129}, "num_beams is 129, the model takes batches of 128", ""),
        (
            [5],
            {"beams": 2},
            "no option called beams",
            "Use some of: max_new_tokens, min_new_tokens",
        ),
        ([{"role": "user", "content": "a"}], {}, "has no chat template", "Write the prompt as"),
    ],
)
def test_what_cannot_go_on(session, prompts, options, message, hint):
    options = {"max_new_tokens": 4} | options if prompts != [[5] * 70] else options
    with pytest.raises(FeedError) as caught:
        session.generate(prompts, **options)
    assert message in str(caught.value)
    assert caught.value.hint.startswith(hint)


def test_a_stream_of_too_many_rows_or_beams(session):
    with pytest.raises(FeedError, match="got 129 prompts, the model takes 128 at once"):
        session.stream([[5]] * 129, max_new_tokens=2)
    with pytest.raises(FeedError, match="a stream cannot follow beams"):
        session.stream([5], num_beams=2)


def test_a_closed_session(llama):
    session = tfx.open_session(llama[1])
    session.close()
    with pytest.raises(BackendError, match="session is closed"):
        session.generate([5])


def test_a_bundle_without_a_cache(tmp_path):
    source = write_generator(tmp_path / "source")
    (bundle,) = export_bundles(str(source), tmp_path / "bundle")
    with (
        tfx.open_session(bundle) as session,
        pytest.raises(FeedError, match="has no cache to generate with"),
    ):
        session.generate([5])


def test_options_have_no_problems_by_default():
    assert Options().max_new_tokens == 64


def test_texts_are_predicted_in_one_pass(session):
    (logits,) = session.predict(["alpha beta"])
    assert logits["logits"].shape == (4, 64)

"""Streams that are left, stopped or cut off, and drawing that is the same everywhere."""

import gc
import threading

import pytest
from support.generators import write_generator

import tfx
from tfx.errors import BackendError, FeedError
from tfx.export.pipeline import export_bundles
from tfx.runtime.generation.decoder import Decoder

PROMPT = "alpha of"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("left")
    source = write_generator(folder / "source", "llama")
    return export_bundles(str(source), folder / "made", cache=True)[0]


@pytest.fixture
def session(bundle):
    with tfx.open_session(bundle, backend="onnxruntime") as opened:
        yield opened


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_stream_that_is_closed_computes_nothing_more(bundle, backend, monkeypatch):
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, ids: (steps.append(1), step(self, ids))[1])
    with tfx.open_session(bundle, backend=backend) as session:
        whole = session.generate(PROMPT, max_new_tokens=8)
        steps.clear()
        for leave in ("close", "forget"):
            stream = session.stream(PROMPT, max_new_tokens=8)
            next(stream), next(stream)
            if leave == "close":
                stream.close()
            del stream
            gc.collect()
            assert len(steps) == 1
            steps.clear()
            assert session.generate(PROMPT, max_new_tokens=8) == whole
            steps.clear()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_and_leaves_the_session_usable(session, monkeypatch, kind):
    whole = session.generate(PROMPT, max_new_tokens=8)
    calls = []

    def interrupted(self, ids):
        calls.append(1)
        raise kind

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "step", interrupted)
        with pytest.raises(kind):
            session.generate(PROMPT, max_new_tokens=8)
    assert len(calls) == 1
    assert session.generate(PROMPT, max_new_tokens=8) == whole


def test_a_session_that_is_closed_meanwhile(bundle):
    """The text that is being written ends, or says that the session is closed."""
    session = tfx.open_session(bundle, backend="onnxruntime")
    begun, problems, counts = threading.Event(), [], []

    def write():
        try:
            count = 0
            for _ in session.stream([5, 6, 7], max_new_tokens=40):
                count += 1
                begun.set()
            counts.append(count)
        except BackendError as error:
            problems.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(60)
    session.close()
    thread.join(60)
    assert not thread.is_alive()
    assert counts or "session is closed" in problems[0]
    with pytest.raises(BackendError, match="session is closed"):
        session.stream(PROMPT)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_a_seed_draws_the_same_on_every_backend(bundle, session, backend):
    options = {"temperature": 0.9, "top_p": 0.9, "top_k": 30, "max_new_tokens": 12}
    prompts = [PROMPT, "beta", "gamma delta alpha"]
    expected = {seed: session.generate(prompts, seed=seed, **options) for seed in (1, 2)}
    assert expected[1] != expected[2]
    with tfx.open_session(bundle, backend=backend) as other:
        for seed, texts in expected.items():
            assert other.generate(prompts, seed=seed, **options) == texts


def test_each_text_as_it_is_over(session, monkeypatch):
    monkeypatch.setattr("tfx.runtime.generation.generator.BATCH_ROWS", 2)
    prompts = ["alpha", "beta", "gamma of", "delta"]
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    texts = session.generate_each(prompts, **options)
    assert [next(texts) for _ in range(4)] == session.generate(prompts, **options)
    with pytest.raises(FeedError, match=r"prompts\[1\]: has token 64"):
        session.generate_each([[5], [64]], max_new_tokens=4)


def test_an_empty_text_begins_after_what_the_tokenizer_adds(session):
    """This tokenizer puts its own tokens around a text; one that adds none refuses."""
    assert session.generate("", max_new_tokens=3) == session.generate([2, 3], max_new_tokens=3)

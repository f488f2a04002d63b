"""The programs of docs/services.md serve: many callers, refusals, an orderly end, workers."""

import asyncio
import contextlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.texts import MEAN, write_text_bundle

import tfx

TEXT = (Path(__file__).parents[1] / "docs" / "services.md").read_text()
FILES = re.compile(r"<!-- save as (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and forks of POSIX")


@pytest.fixture
def folder(tmp_path):
    write_text_bundle(tmp_path / "minilm", embedding=MEAN)
    for name, text in FILES.findall(TEXT):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def expected(folder):
    with tfx.open_session(folder / "minilm") as session:
        return {text: session.predict(text) for text in ("good film", "very bad film", "a")}


@pytest.fixture
def service(folder):
    """The process and its port; ended with the test."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "service.py", "minilm", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        words = process.stdout.readline().split()
        assert words[:2] == ["ready", "on"], process.communicate()
        yield process, int(words[2])
    finally:
        process.kill()
        process.communicate()


def test_it_answers_many_callers_and_ends_when_it_is_told(service, expected):
    process, port = service
    callers = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(20)]
    for caller, text in zip(callers, [*expected] * 7, strict=False):
        caller.sendall(f"{text}\n{text}\n".encode())
    for caller, text in zip(callers, [*expected] * 7, strict=False):
        with caller, caller.makefile() as lines:
            for _ in range(2):
                found = json.loads(lines.readline())["embedding"]
                np.testing.assert_allclose(found, expected[text], rtol=1e-5)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as endless:
        endless.sendall(b"a" * 200_000)
        with contextlib.suppress(ConnectionError):
            assert endless.recv(1) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as idle:
        idle.sendall(b"a\n")
        assert idle.recv(1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_it_says_whose_fault_it_was(folder):
    program = runpy.run_path(str(folder / "service.py"))

    async def ask(session):
        good = await program["answer"](session, "good film")
        wrong = await program["answer"](session, "half of a pair: \ud800")
        crowd = await asyncio.gather(*(program["answer"](session, "a") for _ in range(50)))
        return good, wrong, crowd

    with tfx.open_session(folder / "minilm", batching=tfx.Batching(max_queue=2)) as session:
        good, wrong, crowd = asyncio.run(ask(session))
    assert "embedding" in good
    assert wrong["status"] == 400
    assert "surrogate" in wrong["error"]
    refused = [one for one in crowd if one.get("status") == 503]
    assert 0 < len(refused) < 50


def test_who_waits_too_long_is_told(folder):
    program = runpy.run_path(str(folder / "service.py"))
    program["answer"].__globals__["ANSWER_S"] = 0.0
    with tfx.open_session(folder / "minilm") as session:
        assert asyncio.run(program["answer"](session, "a"))["status"] == 503


def test_each_worker_opens_its_own(folder, expected):
    """As gunicorn does: settings are read, the program is loaded, workers are forked."""
    settings = runpy.run_path(str(folder / "gunicorn.conf.py"))
    code = (
        "import io, json, os, runpy, sys; sys.path.insert(0, '')\n"
        "settings = runpy.run_path('gunicorn.conf.py')\n"
        "import wsgi\n"
        "workers = []\n"
        "for _ in range(settings['workers']):\n"
        "    if not (child := os.fork()):\n"
        "        settings['post_fork'](None, None)\n"
        "        warm = wsgi.session.cache_info().currsize\n"
        "        environ = {'wsgi.input': io.BytesIO(b'good film')}\n"
        "        body = b''.join(wsgi.app(environ, lambda status, headers: None))\n"
        "        os.write(1, json.dumps([warm, json.loads(body)]).encode() + b'\\n')\n"
        "        os._exit(0)\n"
        "    workers.append(child)\n"
        "assert [os.waitpid(one, 0)[1] for one in workers] == [0, 0]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [warm for warm, _ in answers] == [1] * settings["workers"]
    for _, found in answers:
        np.testing.assert_allclose(found, expected["good film"], rtol=1e-5)


def test_every_block_is_run_or_says_why_not():
    notes = re.findall(r"(?:<!-- (.+?) -->\n)?```(\w+)\n(.*?)```", TEXT, re.DOTALL)
    alone = [code for note, _, code in notes if not note.startswith(("save as", "not run: "))]
    assert alone == ["python service.py minilm 8000\n"]  # as the fixture does

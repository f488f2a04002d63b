"""A command that is asked to end cleans up, and says by which signal."""

import signal
import subprocess
import sys
import threading

import pytest

from tfx.endings import Terminated, raised_signals

# `tfx doctor`, which writes a bundle and is not done before it is ended.
STUCK = f"""
import signal, sys, time
sys.path[:0] = {sys.path!r}
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
import click
from tfx import cli
from tfx.bundle import create_bundle

@click.command("doctor")
def doctor():
    with create_bundle("x") as staging:
        (staging.path / "model.onnx").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

cli.Root.get_command = lambda self, context, name: doctor
cli.main(["doctor"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_command_that_is_ended_leaves_nothing(tmp_path, number):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said == f"ended by {number.name}\n"
    assert list(tmp_path.iterdir()) == []


def test_signal_is_raised_once_and_then_the_process_is_as_before():
    with pytest.raises(Terminated) as caught, raised_signals():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.signal is signal.SIGTERM
    assert isinstance(caught.value, KeyboardInterrupt)  # who expects Ctrl-C expects this
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_second_signal_ends_at_once():
    code = f"""
import signal, sys
sys.path[:0] = {sys.path!r}
from tfx.endings import raised_signals
with raised_signals():
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGTERM


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda number, frame: None])
def test_what_is_ignored_or_handled_stays_so(other):
    before = signal.signal(signal.SIGTERM, other)
    try:
        with raised_signals():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == other
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_changes_nothing():
    seen = []

    def look():
        with raised_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]

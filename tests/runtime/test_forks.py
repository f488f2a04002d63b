"""A session in a forked child, or in a pickle: an error that says so, not a wait without end."""

import os
import pickle
import subprocess
import sys

import pytest
from support.bundles import write_bundle
from support.texts import write_text_bundle

from tfx.errors import BackendError
from tfx.runtime.opening import open_session

CHILD = """
import os, signal, sys
import numpy as np
from tfx.runtime.opening import open_session
session = open_session(sys.argv[1], backend=sys.argv[2], threads=2)
feed = {name: np.ones((1, 3), np.int64) for name in ("input_ids", "attention_mask")}
session.predict(feed)
session.predict_async(feed).result()
child = os.fork()
if not child:
    signal.alarm(20)
    for call in (session.predict, session.predict_async, session.generate):
        try:
            call(feed)
        except Exception as error:
            print(error, "|", error.hint)
    session.close()
    with open_session(sys.argv[1], backend=sys.argv[2], threads=1) as own:
        print(sorted(own.predict(feed)))
    sys.stdout.flush()
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status, sorted(session.predict(feed)))
session.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_forked_child_is_told_to_open_its_own(tmp_path, backend):
    bundle = write_bundle(tmp_path / "b")
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, bundle.path, backend],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.splitlines()
    refusal = (
        "session was opened before this process was forked: its threads are the parent's | "
        "Call open_session in each process, or start them with multiprocessing's 'spawn'."
    )
    assert said[:3] == [refusal] * 3
    assert said[4:] == [f"0 {said[3]}"]


def test_a_session_is_not_pickled(tmp_path):
    session = open_session(write_text_bundle(tmp_path / "b").path)
    with pytest.raises(BackendError, match="a session cannot be pickled: its model") as raised:
        pickle.dumps(session)
    assert raised.value.hint.startswith("Send the bundle's path")

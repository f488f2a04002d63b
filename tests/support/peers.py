"""A stand-in for the script that runs a peer: a tiny one, without any library."""

from pathlib import Path

from tfx.bench.throughput import Contestant

# Embeds a text by its length; the job says how slow it is, how wrong, and when it fails.
SCRIPT = """
import json, sys
import numpy as np
kept = []
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "load":
        job = asked["job"]
        if job.get("fails") == "load":
            answer = {"error": "ImportError: no such library", "hint": ""}
        else:
            answer = {"ok": {"versions": "stand-in 1", "precision": job["kind"], "note": ""}}
    elif asked["do"] == "outputs":
        np.save(asked["path"], np.concatenate(kept))
        answer = {"ok": len(kept)}
    else:
        if job.get("fails") == asked["do"]:
            sys.exit("out of memory")
        texts = asked["texts"]
        if asked["do"] == "embed":
            angles = np.array([len(text) / 50 + job["wrong"] for text in texts])
            rows = np.stack([np.cos(angles), np.sin(angles)], 1)
            kept.append(rows[:, : job.get("dim", 2)].astype(np.float32))
        answer = {"ok": job["us"] * 1e-6 * len(texts) * (1 + abs(asked["batch"] - 32) / 32)}
    print(json.dumps(answer), flush=True)
"""


def stand_in(folder: Path, python: str, name: str, *, own=False, problem="", **job) -> Contestant:
    """A contestant that says a text took ``us`` microseconds, and is ``wrong`` radians off."""
    script = folder / "peer.py"
    script.write_text(SCRIPT)
    fields = {"us": 100.0, "wrong": 0.0, "kind": "float32"} | job
    return Contestant(name, own, python, name, fields, problem, script)

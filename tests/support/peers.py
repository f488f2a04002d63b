"""A stand-in for the script that runs a peer: a tiny one, without any library."""

from pathlib import Path

from tfx.bench.peers.contestants import Contestant
from tfx.bench.peers.throughput import BATCHES

# Embeds a text by its length; the job says how slow it is, how wrong, and when it fails. It writes
# NumPy's format by itself: importing NumPy takes longer than all the rest.
SCRIPT = """
import array, math, struct, sys

class Server:
    def answer(self, asked):
        if asked["do"] == "load":
            self.job, self.kept = asked["job"], []
            if self.job.get("fails") == "load":
                raise ImportError("no such library" + "\\n line" * self.job.get("page", 0))
            return {"versions": "stand-in 1", "precision": self.job["kind"], "note": ""}
        job, kept = self.job, self.kept
        if asked["do"] == "outputs":
            shape = (len(kept), job.get("dim", 2))
            head = str({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\\n"
            flat = array.array("f", [value for row in kept for value in row[: shape[1]]])
            with open(asked["path"], "wb") as file:
                file.write(b"\\x93NUMPY\\x01\\x00" + struct.pack("<H", len(head)) + head.encode())
                file.write(flat.tobytes())
            return len(kept)
        if job.get("fails") == asked["do"]:
            sys.exit("out of memory")
        texts = asked["texts"]
        if asked["do"] == "embed":
            angles = [len(text) / 50 + job["wrong"] for text in texts]
            kept += [(math.cos(angle), math.sin(angle)) for angle in angles]
        slower = 1 + abs(asked["batch"] - job["best"]) / 32
        return job["us"] * 1e-6 * len(texts) * slower
"""


def stand_in(folder: Path, python: str, name: str, *, own=False, problem="", **job) -> Contestant:
    """A contestant that says a text took ``us`` microseconds, and is ``wrong`` radians off."""
    script = folder / "peer.py"
    script.write_text(SCRIPT)
    fields = {"us": 100.0, "wrong": 0.0, "kind": "float32", "best": 32} | job
    batches = (1, 2) if own else BATCHES
    return Contestant(name, own, python, name, fields, script, problem, batches)

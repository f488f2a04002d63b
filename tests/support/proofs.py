"""Tiny bundles that carry a proof, as an export writes it, without exporting."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tfx.bundle import Bundle, sha256_of
from tfx.report import Check, OutputError, ParityReport
from tfx.runtime.proof import PROOF_FILE, Case, store_cases

from .bundles import TEXT_SIGNATURE, VOCABULARY, text_graph, write_bundle

PARITY = ParityReport(
    reference="torch 2.13.0 eager float32",
    backend="onnxruntime 1.31.1 CPUExecutionProvider float32",
    shapes=("batch 2, sequence 5",),
    outputs=(OutputError("last_hidden_state", 1e-6, 2e-6, 0.999999),),
    checks=(Check("parity", 2, 1e-6, 1e-4), Check("batch = single", 3, 2e-7, 1e-4)),
)


def text_outputs(feed, *, seed: int = 0) -> dict[str, np.ndarray]:
    """What ``text_graph`` computes, in NumPy."""
    (table,) = (
        numpy_helper.to_array(tensor)
        for tensor in text_graph(seed).graph.initializer
        if tensor.name == "table"
    )
    kept = feed["attention_mask"][..., None].astype(np.float32)
    return {"last_hidden_state": table[feed["input_ids"]] * kept}


def text_cases(rng: np.random.Generator, shapes=((2, 5), (3, 9))) -> list[Case]:
    """Feeds of the text graph; row 1 is padded."""
    cases = []
    for batch, sequence in shapes:
        mask = np.ones((batch, sequence), np.int64)
        mask[1:2, sequence // 2 :] = 0
        ids = rng.integers(0, VOCABULARY, (batch, sequence))
        feed = {"input_ids": ids, "attention_mask": mask}
        cases.append(Case(f"batch {batch}, sequence {sequence}", feed))
    return cases


def write_proven_bundle(
    path: Path, graph: onnx.ModelProto | None = None, *, proof=text_outputs, **changes
) -> Bundle:
    """A bundle of the text graph with feeds and reference outputs in it.

    Args:
        path: Folder to make.
        graph: Its model, by default the one the proof is of.
        proof: Feed to reference outputs.
        **changes: Manifest fields.
    """
    cases = text_cases(np.random.default_rng(1))
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = path.parent / f"{path.name}.{PROOF_FILE}"
    store_cases(
        stored, TEXT_SIGNATURE, cases, [proof(c.feed) for c in cases], np.random.default_rng(2)
    )
    data = stored.read_bytes()
    stored.unlink()
    changes = {"parity": PARITY} | changes
    return write_bundle(path, graph, files={PROOF_FILE: data}, **changes)


def redigest(bundle: Bundle) -> None:
    """Make ``tfx.json`` agree with files that were changed, as somebody who tampers would."""
    path = bundle.path / "tfx.json"
    document = json.loads(path.read_text())
    for entry in document["files"]:
        file = bundle.path / entry["path"]
        entry["sha256"], entry["size_bytes"] = sha256_of(file), file.stat().st_size
    path.write_text(json.dumps(document))

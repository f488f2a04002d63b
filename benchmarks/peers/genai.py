"""onnxruntime-genai: the model that its own builder makes, and a bundle's graph as it takes one.

Imported by ``generators.py`` in the environment that has the library.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .serving import said_versions
from .watch import Job, Ready, Text, Watch


def load_genai(job: Job) -> Ready:
    """onnxruntime-genai, with the model that its own builder makes of the checkpoint."""
    target, cache = Path(job.folder, "model"), Path(job.folder, "cache")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", job.checkpoint]
    command += ["-o", str(target), "-p", "fp32", "-e", "cpu", "-c", str(cache)]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode:
        said = made.stderr.strip().splitlines()[-1]
        # What is kept does not name folders of the machine.
        said = said.replace(job.checkpoint, Path(job.checkpoint).name)
        raise RuntimeError(f"its builder: {said}")
    return _genai(target, job, "float32", "its own graph")


def load_genai_graph(job: Job) -> Ready:
    """onnxruntime-genai, with the graph of the bundle and the inputs that it gives."""
    target = Path(job.folder, "model")
    target.mkdir()
    write_genai_graph(Path(job.model), target / "model.onnx")
    config = json.loads(Path(job.checkpoint, "config.json").read_text())
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    names = {
        "inputs": {"past_key_names": "past_key_%d", "past_value_names": "past_value_%d"},
        "outputs": {
            "present_key_names": "present_key_%d",
            "present_value_names": "present_value_%d",
        },
    }
    names["inputs"] |= {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    names["outputs"] |= {"logits": "logits"}
    settings = {
        "model": {
            "type": "llama",  # any decoder that takes keys and values by layer
            "bos_token_id": 0,
            "eos_token_id": config["vocab_size"] - 1,
            "pad_token_id": 0,
            "context_length": job.room,
            "vocab_size": config["vocab_size"],
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": "model.onnx",
                "head_size": config.get("head_dim") or hidden // heads,
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "num_key_value_heads": config.get("num_key_value_heads") or heads,
                "num_hidden_layers": job.layers,
                **names,
            },
        },
        "search": {"max_length": job.room, "past_present_share_buffer": True},
    }
    (target / "genai_config.json").write_text(json.dumps(settings))
    return _genai(target, job, job.kind, "the bundle's graph")


def write_genai_graph(source: Path, target: Path) -> None:
    """The bundle's graph with positions and a whole mask made of the mask that genai gives."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(source))
    graph = model.graph
    make = onnx.helper.make_node

    def constant(name: str, value: Any) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))

    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "genai.mask"
    for name, value in (("zero", 0), ("one", 1), ("zeros", [0, 0, 0]), ("last", [1])):
        constant(f"genai.{name}", value)
    nodes = [
        make("Shape", ["attention_mask"], ["genai.whole"], start=1, end=2),
        make("Shape", ["input_ids"], ["genai.new"], start=1, end=2),
        make("Shape", ["past_key_0"], ["genai.capacity"], start=2, end=3),
        make("Sub", ["genai.whole", "genai.new"], ["genai.begin"]),
        make("Squeeze", ["genai.begin"], ["genai.from"]),
        make("Squeeze", ["genai.whole"], ["genai.to"]),
        make("Range", ["genai.from", "genai.to", "genai.one"], ["cache_position"]),
        make("Squeeze", ["genai.new"], ["genai.count"]),
        make("Range", ["genai.zero", "genai.count", "genai.one"], ["logits_to_keep"]),
        make("Sub", ["genai.capacity", "genai.whole"], ["genai.spare"]),
        make("Concat", ["genai.zeros", "genai.spare"], ["genai.pads"], axis=0),
        make("Pad", ["attention_mask", "genai.pads", "genai.one"], ["genai.mask"]),
    ]
    kept = [one for one in graph.input if one.name not in ("cache_position", "logits_to_keep")]
    every = [*nodes, *graph.node]
    del graph.input[:]
    del graph.node[:]
    graph.input.extend(kept)
    graph.node.extend(every)
    for one in graph.input:
        if one.name == "attention_mask":
            one.type.tensor_type.shape.dim[1].dim_param = "tokens"
    onnx.save(model, str(target), save_as_external_data=True, location="model.data")


def _genai(folder: Path, job: Job, kind: str, note: str) -> Ready:
    library = importlib.import_module("onnxruntime_genai")
    path = folder / "genai_config.json"
    settings = json.loads(path.read_text())
    options = settings["model"]["decoder"].setdefault("session_options", {})
    options["intra_op_num_threads"] = job.threads
    path.write_text(json.dumps(settings))
    model = library.Model(str(folder))

    def write(ids: np.ndarray, count: int) -> Text:
        length = ids.shape[1] + count
        watch = Watch()
        params = library.GeneratorParams(model)
        params.set_search_options(
            max_length=length, min_length=length, batch_size=len(ids), do_sample=False
        )
        generator = library.Generator(model, params)
        generator.append_tokens(ids.astype(np.int32))
        for _ in range(count):
            generator.generate_next_token()
            watch.mark()
        found = [generator.get_sequence(row)[ids.shape[1] :] for row in range(len(ids))]
        return watch.text(np.stack(found))

    return Ready(said_versions("onnxruntime-genai", "onnxruntime"), kind, write, note)

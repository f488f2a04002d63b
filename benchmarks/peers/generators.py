"""What writes text token by token, each in a process of its own; tfx itself is one of them.

This file is run through ``serving.py``, by the Python of whatever environment has the library. So
it imports nothing but the standard library and NumPy until it is told which one to load, and
nothing of tfx but for its own rows.

The parent writes one JSON object a line and reads one back, ``{"ok": ...}`` or
``{"error": ..., "hint": ""}``::

    {"do": "load", "peer": "ctranslate2", "job": {...}}      library and model made ready: ``Job``
    {"do": "write", "prompt": [[...], ...], "count": 128}    tokens written after it: ``Text``

Everybody takes the likeliest token each time and never ends before ``count``.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .genai import load_genai, load_genai_graph
from .serving import Peer, said_versions, set_environment
from .watch import Job, Ready, Text, Watch, Write, forget_peak, resident_mb


def load_tfx(job: Job) -> Ready:
    """A bundle on one of its backends, by the loop that ``Session.generate`` has.

    Tokens only, as everybody writes here: the session also makes text of each, for about 0.1 ms of
    processor time.
    """
    bundles = importlib.import_module("tfx.bundle")
    backends = importlib.import_module("tfx.runtime.backend")
    decoding = importlib.import_module("tfx.runtime.generation.decoder")
    bundle = bundles.open_bundle(Path(job.bundle))
    options = backends.RunOptions(threads=job.threads, precision=job.precision)
    executable = backends.get_backend(job.backend).load(bundle, options)

    def write(ids: np.ndarray, count: int) -> Text:
        watch = Watch()
        decoder = decoding.Decoder(executable, bundle.manifest.signature)
        logits = decoder.start(ids, np.ones_like(ids), ids.shape[1] + count)
        chosen = []
        for step in range(count):
            chosen.append(logits.argmax(axis=1))
            watch.mark()
            if step + 1 < count:
                logits = decoder.step(chosen[-1])
        return watch.text(np.stack(chosen, axis=1), decoder.copied)

    facts = executable.facts
    return Ready(f"{facts.backend} {facts.version}", str(facts.precision), write)


def load_transformers(job: Job) -> Ready:
    """Transformers' own ``generate`` on PyTorch."""
    torch = importlib.import_module("torch")
    library = importlib.import_module("transformers")
    torch.set_num_threads(job.threads)
    model = library.AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32)
    return Ready(said_versions("transformers", "torch"), "float32", by_generate(model.eval()))


def load_optimum_onnx(job: Job) -> Ready:
    """``ORTModelForCausalLM`` of optimum-onnx, by its own export."""
    optimum = importlib.import_module("optimum.onnxruntime")
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    model = optimum.ORTModelForCausalLM.from_pretrained(
        job.checkpoint, export=True, provider="CPUExecutionProvider", session_options=options
    )
    return Ready(said_versions("optimum-onnx", "onnxruntime"), "float32", by_generate(model))


def load_optimum_openvino(job: Job, *, kind: str = "f32") -> Ready:
    """``OVModelForCausalLM`` of optimum-intel with its cache as state, by its own export."""
    optimum = importlib.import_module("optimum.intel")
    config = {
        "INFERENCE_PRECISION_HINT": kind,
        "KV_CACHE_PRECISION": kind,
        "INFERENCE_NUM_THREADS": str(job.threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = optimum.OVModelForCausalLM.from_pretrained(
        job.checkpoint, export=True, stateful=True, load_in_8bit=False, ov_config=config
    )
    return Ready(said_versions("optimum-intel", "openvino"), "float32", by_generate(model))


def by_generate(model: Any) -> Write:
    """What writes by ``generate`` of transformers, which others take over."""
    torch = importlib.import_module("torch")
    library = importlib.import_module("transformers")
    model.generation_config = library.GenerationConfig(pad_token_id=0)

    def write(ids: np.ndarray, count: int) -> Text:
        given = torch.from_numpy(ids)
        watch = Watch()

        def look(tokens: Any, scores: Any, **_: Any) -> Any:
            watch.mark()
            return torch.zeros(len(tokens), dtype=torch.bool)

        with torch.inference_mode():
            found = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=count,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                stopping_criteria=library.StoppingCriteriaList([look]),
            )
        return watch.text(found[:, ids.shape[1] :].numpy())

    return write


def load_ctranslate2(job: Job, *, kind: str = "float32") -> Ready:
    """CTranslate2's generator, converted from the checkpoint."""
    library = importlib.import_module("ctranslate2")
    config = json.loads(Path(job.checkpoint, "config.json").read_text())
    able = library.get_supported_compute_types("cpu")
    if kind not in able:
        raise RuntimeError(f"it computes in {', '.join(sorted(able))} on this CPU")
    source = Path(job.folder, "source")
    shutil.copytree(job.checkpoint, source)
    words = [f"t{number}" for number in range(config["vocab_size"])]
    _write_tokenizer(source, words)
    target = Path(job.folder, "model")
    library.converters.TransformersConverter(str(source)).convert(str(target))
    generator = library.Generator(
        str(target), device="cpu", compute_type=kind, inter_threads=1, intra_threads=job.threads
    )

    def write(ids: np.ndarray, count: int) -> Text:
        prompts = [[words[token] for token in row] for row in ids]
        watch = Watch()
        last = len(ids) - 1

        def look(step: Any) -> bool:
            if step.batch_id == last:
                watch.mark()
            return False

        found = generator.generate_batch(
            prompts,
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,
            end_token=[],
            callback=look,
        )
        return watch.text([[int(word[1:]) for word in one.sequences[0]] for one in found])

    # "int8_float32" is what it calls int8 products between float32 values.
    return Ready(said_versions("ctranslate2"), str(generator.compute_type), write)


def _write_tokenizer(folder: Path, words: list[str]) -> None:
    """Words of our own: its converter asks for them, and a checkpoint may have none."""
    for path in folder.glob("*token*"):
        path.unlink()
    numbers = {word: number for number, word in enumerate(words)}
    model = {"type": "WordLevel", "vocab": numbers, "unk_token": "t0"}
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    document = {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(parts)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    special = {f"{kind}_token": "t0" for kind in ("unk", "bos", "eos", "pad")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


PEERS: Mapping[str, Peer[Job, Ready]] = {
    "transformers": Peer("", load_transformers),
    "onnxruntime-genai": Peer("genai", load_genai),
    "onnxruntime-genai, our graph": Peer("genai", load_genai_graph),
    "optimum-onnx": Peer("optimum", load_optimum_onnx),
    "optimum-intel": Peer("optimum", load_optimum_openvino),
    "ctranslate2": Peer("ctranslate2", load_ctranslate2),
    "ctranslate2 int8": Peer("ctranslate2", lambda job: load_ctranslate2(job, kind="int8")),
}


class Server:
    """Answers the parent's questions about one peer."""

    def __init__(self) -> None:
        self._ready: Ready | None = None

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Do what the parent asks and return what it is told, as JSON values."""
        match question["do"]:
            case "load":
                job = Job(**question["job"])
                set_environment(job.threads)
                load = load_tfx if question["peer"] == "tfx" else PEERS[question["peer"]].load
                ready = self._ready = load(job)
                forget_peak()  # of loading, which is no part of writing
                return {
                    "versions": ready.versions,
                    "precision": ready.precision,
                    "note": ready.note,
                    "resident_mb": resident_mb("VmRSS"),
                }
            case "write":
                assert self._ready is not None  # "load" comes first
                text = self._ready.write(np.array(question["prompt"]), question["count"])
                return asdict(text) | {"peak_mb": resident_mb("VmHWM")}
            case other:
                raise ValueError(f"no such question: {other}")

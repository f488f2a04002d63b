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

import contextlib
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .serving import Peer, said_versions, set_environment

# Prompts ``int64[batch, sequence]`` and how many tokens to write -> the text.
Write = Callable[[np.ndarray, int], "Text"]


@dataclass(frozen=True)
class Job:
    """What a peer is given.

    Attributes:
        checkpoint: Folder of the model, as transformers reads it.
        model: The bundle's ONNX graph, for what has no exporter of its own.
        folder: Empty, for what the peer writes; of this one alone.
        threads: CPU threads.
        room: Most tokens of prompt and text together.
        layers: Of keys and values in the graph.
        kind: Element type that the graph multiplies in.
        bundle: For tfx: a bundle's folder.
        backend: For tfx.
        precision: For tfx.
    """

    checkpoint: str
    model: str
    folder: str
    threads: int
    room: int
    layers: int = 0
    kind: str = "float32"
    bundle: str = ""
    backend: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Text:
    """Tokens that were written, and what it took.

    Attributes:
        ids: ``[batch, count]``.
        times_s: From the start to each token of all rows; only the last where it is not seen.
        cpu_s: Processor time of all threads.
        copies: How often the whole cache was copied; None where it is not known.
        cpu_times_s: As ``times_s``, of processor time.
        resident_mb: At each of them; None where Linux does not say.
    """

    ids: list[list[int]]
    times_s: list[float]
    cpu_s: float
    copies: int | None = None
    cpu_times_s: list[float] = field(default_factory=list)
    resident_mb: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Ready:
    """A peer that is loaded.

    Attributes:
        versions: Of the library, and of the engine under it.
        precision: Element type it multiplies in.
        write: Runs it.
        note: What a reader must know.
    """

    versions: str
    precision: str
    write: Write
    note: str = ""


class Watch:
    """Notes when tokens are there, and how much memory is taken then.

    Attributes:
        times_s: Of each token so far.
        cpu_times_s: The same in processor time.
        resident_mb: At each of them.
    """

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.cpu_times_s: list[float] = []
        self.resident_mb: list[float | None] = []
        self._cpu, self._started = time.process_time(), time.perf_counter()

    def mark(self) -> None:
        """A token of every row is there."""
        self.times_s.append(time.perf_counter() - self._started)
        self.cpu_times_s.append(time.process_time() - self._cpu)
        self.resident_mb.append(resident_mb("VmRSS"))

    def text(self, ids: Any, copies: int | None = None) -> Text:
        """The text, which ends here."""
        cpu_s = time.process_time() - self._cpu
        if not self.times_s:
            self.mark()
        rows = np.asarray(ids).tolist()
        return Text(rows, self.times_s, cpu_s, copies, self.cpu_times_s, self.resident_mb)


def load_tfx(job: Job) -> Ready:
    """A bundle on one of its backends, by the loop that ``Session.generate`` has."""
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


def resident_mb(field: str, status: Path = Path("/proc/self/status")) -> float | None:
    """A size of this process that Linux counts in kB, in MB; None where it does not say."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 / 1e6 if sizes else None


def forget_peak(path: Path = Path("/proc/self/clear_refs")) -> None:
    """Let Linux count the peak of this process from here."""
    with contextlib.suppress(OSError):
        path.write_text("5")

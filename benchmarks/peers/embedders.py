"""What users would take instead of tfx, each in a process of its own; tfx itself is one of them.

This file is run through ``serving.py``, by the Python of whatever environment has the library. So
it imports nothing but the standard library and NumPy until it is told which one to load, and
nothing of tfx but for its own rows.

The parent writes one JSON object a line and reads one back, ``{"ok": ...}`` or
``{"error": ..., "hint": ""}``::

    {"do": "load", "peer": "fastembed", "job": {...}}   library and model made ready: see ``Job``
    {"do": "try", "texts": [...], "batch": 32}          seconds of embedding them
    {"do": "embed", "texts": [...], "batch": 32}        the same, and the embeddings are kept
    {"do": "outputs", "path": "x.npy"}                  writes those, in the order they were asked
"""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .serving import Peer, said_versions, set_environment

# Texts and batch size -> their embeddings, ``float32[texts, dim]``. Of tfx not the size of a batch
# but how many run at once.
Embed = Callable[[list[str], int], np.ndarray]


@dataclass(frozen=True)
class Job:
    """What a peer is given.

    Attributes:
        checkpoint: Folder of the model, as transformers and sentence-transformers read it.
        model: The bundle's ONNX graph, for what has no exporter of its own.
        folder: Empty, for what the peer writes; of this one alone.
        threads: CPU threads.
        max_length: Tokens kept of a text.
        dim: Size of an embedding.
        bundle: For tfx: a bundle's folder.
        backend: For tfx.
        precision: For tfx.
    """

    checkpoint: str
    model: str
    folder: str
    threads: int
    max_length: int
    dim: int
    bundle: str = ""
    backend: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Ready:
    """A peer that is loaded.

    Attributes:
        versions: Of the library, and of the engine under it.
        precision: Element type it multiplies in.
        embed: Runs it.
        note: What a reader must know.
    """

    versions: str
    precision: str
    embed: Embed
    note: str = ""


def load_tfx(job: Job) -> Ready:
    """A bundle on one of its backends, as ``Session.map`` runs a stream of texts.

    Its batches are its own; what may be chosen is how many of them run at once.
    """
    runtime = importlib.import_module("tfx.runtime.opening")

    @functools.cache
    def session_of(streams: int) -> Any:
        return runtime.open_session(
            job.bundle,
            backend=job.backend,
            precision=job.precision,
            threads=job.threads,
            streams=streams,
            verify=False,
        )

    def embed(texts: list[str], streams: int) -> np.ndarray:
        return np.stack(list(session_of(streams).map(texts)))

    facts = session_of(1).report.facts
    return Ready(f"{facts.backend} {facts.version}", str(facts.precision), embed)


def load_st_torch(job: Job, *, half: bool = False) -> Ready:
    """sentence-transformers on PyTorch."""
    torch = importlib.import_module("torch")
    library = importlib.import_module("sentence_transformers")
    torch.set_num_threads(job.threads)
    model = library.SentenceTransformer(job.checkpoint, device="cpu")
    if half:
        if not {"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags():
            raise RuntimeError("this CPU multiplies no bfloat16")
        model = model.bfloat16()
    versions = said_versions("sentence-transformers", "torch")
    return Ready(versions, "bfloat16" if half else "float32", of_model(model))


def load_st_onnx(job: Job) -> Ready:
    """sentence-transformers on ONNX Runtime, by its own export."""
    model = _st_onnx(job, job.checkpoint, {"export": True})
    return Ready(_versions_of_st("onnxruntime"), "float32", of_model(model))


def load_st_onnx_int8(job: Job) -> Ready:
    """sentence-transformers on ONNX Runtime, in the dynamic int8 its documentation shows."""
    library = importlib.import_module("sentence_transformers")
    kind = "avx512_vnni" if "avx512_vnni" in cpu_flags() else "avx2"
    if "asimd" in cpu_flags():
        kind = "arm64"
    model = _st_onnx(job, job.checkpoint, {"export": True})
    model.save_pretrained(job.folder)
    library.export_dynamic_quantized_onnx_model(model, kind, job.folder)
    (file,) = Path(job.folder, "onnx").glob("*int8*.onnx")
    quantized = _st_onnx(job, job.folder, {"file_name": f"onnx/{file.name}"})
    return Ready(_versions_of_st("onnxruntime"), "int8", of_model(quantized), f"dynamic, {kind}")


def _st_onnx(job: Job, source: str, settings: Mapping[str, Any]) -> Any:
    ort = importlib.import_module("onnxruntime")
    library = importlib.import_module("sentence_transformers")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    return library.SentenceTransformer(
        source,
        backend="onnx",
        model_kwargs={
            "provider": "CPUExecutionProvider",
            "session_options": options,
            **settings,
        },
    )


def load_st_openvino(job: Job) -> Ready:
    """sentence-transformers on OpenVINO, which takes bfloat16 where the CPU has it."""
    library = importlib.import_module("sentence_transformers")
    config = {"INFERENCE_NUM_THREADS": str(job.threads)}
    model = library.SentenceTransformer(
        job.checkpoint, backend="openvino", model_kwargs={"export": True, "ov_config": config}
    )
    inner = model[0].auto_model
    inner.compile()
    compiled = inner.request if hasattr(inner.request, "get_property") else inner.compiled_model
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
    return Ready(_versions_of_st("openvino"), names.get(hint, hint), of_model(model))


def _versions_of_st(engine: str) -> str:
    return said_versions("sentence-transformers", engine)


def load_transformers_onnx(job: Job) -> Ready:
    """The exporter and the ONNX Runtime runner of transformers itself."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    exporters = importlib.import_module("transformers.exporters.exporter_onnx")
    ort = importlib.import_module("onnxruntime")
    torch.set_num_threads(job.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.checkpoint)
    model = transformers.AutoModel.from_pretrained(job.checkpoint).eval()
    sample = tokenizer(["a text", "another text of two"], padding=True, return_tensors="pt")
    exported = exporters.OnnxExporter().export(
        model, dict(sample), config=exporters.OnnxConfig(dynamic=True)
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    exported = exported.to("cpu", session_options=options)

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        given["token_type_ids"] = torch.zeros_like(given["input_ids"])
        states: np.ndarray = exported(**given).last_hidden_state.numpy()
        return states

    embed = of_encoder(transformers.AutoTokenizer.from_pretrained(job.checkpoint), run, job)
    return Ready(said_versions("transformers", "onnxruntime"), "float32", embed)


def load_optimum_onnx(job: Job) -> Ready:
    """``ORTModelForFeatureExtraction`` of optimum-onnx, by its own export."""
    transformers = importlib.import_module("transformers")
    optimum = importlib.import_module("optimum.onnxruntime")
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    model = optimum.ORTModelForFeatureExtraction.from_pretrained(
        job.checkpoint, export=True, provider="CPUExecutionProvider", session_options=options
    )

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        types = np.zeros_like(ids)
        found = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        states: np.ndarray = found.last_hidden_state
        return states

    embed = of_encoder(transformers.AutoTokenizer.from_pretrained(job.checkpoint), run, job)
    return Ready(said_versions("optimum-onnx", "onnxruntime"), "float32", embed)


def load_fastembed(job: Job) -> Ready:
    """fastembed, with the graph of the bundle as a custom model."""
    library = importlib.import_module("fastembed")
    described = importlib.import_module("fastembed.common.model_description")
    folder = Path(job.folder)
    for path in Path(job.checkpoint).glob("*.json"):
        shutil.copy(path, folder)
    for path in Path(job.model).parent.glob(f"{Path(job.model).name}*"):
        shutil.copy(path, folder)
    # It cuts texts at the length this file says, which may be more than the model was made for.
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"model_max_length": job.max_length}
    config.write_text(json.dumps(settings))
    library.TextEmbedding.add_custom_model(
        model="local/model",
        pooling=described.PoolingType.MEAN,
        normalization=True,
        sources=described.ModelSource(hf="local/model"),
        dim=job.dim,
        model_file=Path(job.model).name,
    )
    model = library.TextEmbedding(
        "local/model", specific_model_path=str(folder), threads=job.threads
    )

    def embed(texts: list[str], batch: int) -> np.ndarray:
        # It cuts batches in the order it is given: sorted, as its user would do it.
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        found = list(model.embed([texts[index] for index in order], batch_size=batch))
        return restored(np.stack(found), order)

    versions = said_versions("fastembed", "onnxruntime")
    return Ready(versions, "float32", embed, "the bundle's graph, texts sorted for it")


def load_ctranslate2(job: Job, *, kind: str = "float32") -> Ready:
    """CTranslate2's encoder, converted from the checkpoint."""
    library = importlib.import_module("ctranslate2")
    transformers = importlib.import_module("transformers")
    able = library.get_supported_compute_types("cpu")
    if kind not in able:
        raise RuntimeError(f"it computes in {', '.join(sorted(able))} on this CPU")
    target = Path(job.folder, "model")
    library.converters.TransformersConverter(job.checkpoint).convert(str(target))
    encoder = library.Encoder(
        str(target), device="cpu", compute_type=kind, inter_threads=1, intra_threads=job.threads
    )

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        given = library.StorageView.from_array(ids.astype(np.int32))
        lengths = library.StorageView.from_array(mask.sum(1).astype(np.int32))
        states = encoder.forward_batch(given, lengths).last_hidden_state
        return np.array(states.to(library.DataType.float32))

    embed = of_encoder(transformers.AutoTokenizer.from_pretrained(job.checkpoint), run, job)
    # "int8_float32" is what it calls int8 products between float32 values.
    precision, _, rest = str(encoder.compute_type).partition("_")
    return Ready(said_versions("ctranslate2"), precision, embed, f"between {rest}" if rest else "")


def of_model(model: Any) -> Embed:
    """What embeds by ``SentenceTransformer.encode``, which sorts by length itself."""

    def embed(texts: list[str], batch: int) -> np.ndarray:
        found = model.encode(
            texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)

    return embed


def of_encoder(
    tokenizer: Any, run: Callable[[np.ndarray, np.ndarray], np.ndarray], job: Job
) -> Embed:
    """What embeds by an encoder alone: sorted by length, mean of the tokens, normalized.

    Args:
        tokenizer: Of transformers.
        run: Ids and mask ``int64[batch, sequence]`` to states ``float32[batch, sequence, dim]``.
        job: Says where texts are cut.
    """

    def embed(texts: list[str], batch: int) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=job.max_length)["input_ids"]
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        found = []
        for start in range(0, len(order), batch):
            rows = [ids[index] for index in order[start : start + batch]]
            padded = np.full((len(rows), len(rows[0])), tokenizer.pad_token_id or 0, np.int64)
            mask = np.zeros_like(padded)
            for index, row in enumerate(rows):
                padded[index, : len(row)] = row
                mask[index, : len(row)] = 1
            states = run(padded, mask)
            weights = mask[..., None].astype(np.float32)
            means = (states * weights).sum(1) / weights.sum(1)
            found.append(means / np.linalg.norm(means, axis=1, keepdims=True))
        return restored(np.concatenate(found), order)

    return embed


def restored(rows: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Rows that were computed in ``order``, in the order of the texts."""
    found = np.empty_like(rows, np.float32)
    found[list(order)] = rows
    return found


def cpu_flags() -> frozenset[str]:
    """Features of the CPU in Linux's names; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split())


PEERS: Mapping[str, Peer[Job, Ready]] = {
    "sentence-transformers": Peer("", load_st_torch),
    "sentence-transformers bf16": Peer("", lambda job: load_st_torch(job, half=True)),
    "sentence-transformers onnx": Peer("optimum", load_st_onnx),
    "sentence-transformers onnx int8": Peer("optimum", load_st_onnx_int8),
    "sentence-transformers openvino": Peer("optimum", load_st_openvino),
    "transformers onnx": Peer("", load_transformers_onnx),
    "optimum-onnx": Peer("optimum", load_optimum_onnx),
    "fastembed": Peer("fastembed", load_fastembed),
    "ctranslate2": Peer("ctranslate2", load_ctranslate2),
    "ctranslate2 bf16": Peer("ctranslate2", lambda job: load_ctranslate2(job, kind="bfloat16")),
    "ctranslate2 int8": Peer("ctranslate2", lambda job: load_ctranslate2(job, kind="int8")),
}


class Server:
    """Answers the parent's questions about one peer."""

    def __init__(self) -> None:
        self._ready: Ready | None = None
        self._kept: list[np.ndarray] = []

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Do what the parent asks and return what it is told, as JSON values."""
        match question["do"]:
            case "load":
                job = Job(**question["job"])
                set_environment(job.threads)
                load = load_tfx if question["peer"] == "tfx" else PEERS[question["peer"]].load
                ready = self._ready = load(job)
                return {
                    "versions": ready.versions,
                    "precision": ready.precision,
                    "note": ready.note,
                }
            case "try" | "embed" as kind:
                assert self._ready is not None  # "load" comes first
                started = time.perf_counter()
                found = self._ready.embed(question["texts"], question["batch"])
                seconds = time.perf_counter() - started
                if kind == "embed":
                    self._kept.append(np.asarray(found, np.float32))
                return seconds
            case "outputs":
                np.save(question["path"], np.concatenate(self._kept), allow_pickle=False)
                return len(self._kept)
            case other:
                raise ValueError(f"no such question: {other}")

"""``tfx.json``: everything a bundle says about itself, and its schema version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from .codec import DecodeError, decode, encode
from .dtypes import DType
from .errors import BundleError, listing
from .processing import Processing
from .quantization import Quantization
from .recipe import EngineBuild, ExportRecipe, Source
from .report import ParityReport
from .signature import Signature

FILE_NAME = "tfx.json"
# 2: quantization, variants and engines.
SCHEMA_VERSION = 2


class Step(StrEnum):
    """What wrote a bundle."""

    EXPORT = "export"
    QUANTIZE = "quantize"
    BUILD = "build"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle.

    Attributes:
        path: Relative to the bundle, with forward slashes.
        size_bytes: Its length.
        sha256: Lower-case hex digest of its bytes.
    """

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Parent:
    """The bundle this one was made from."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``tfx.json`` holds.

    Attributes:
        name: Of the model, e.g. "minilm".
        step: What wrote the bundle.
        task: Task name as optimum spells it, "feature-extraction".
        precision: Element type of the weights that do the work.
        model: The graph's file, or the engine's.
        signature: What the graph takes and gives.
        source: The PyTorch model at the root of the family.
        recipe: What was asked of the export at the root of the family.
        processing: Text in, answers out.
        parity: Proof against PyTorch.
        tools: Distribution name to version, of what made the bundle.
        facts: Counts worth showing, e.g. ``{"parameters": 22713216}``.
        notes: What a reader must know, one sentence each.
        created: UTC, ISO 8601 with microseconds.
        files: Every file but ``tfx.json`` itself.
        parent: None for an export.
        quantization: How the precision was lowered; None for an export.
        variants: Engine to a graph of the same function in the form that engine runs fastest,
            e.g. ``{"onnxruntime-cpu": "model.onnxruntime-cpu.onnx"}``.
        engine: What the engine in ``model`` needs; None where ``model`` is a graph.
        encoder: The bundle beside it that makes its cross keys; None but for such a decoder.
    """

    name: str
    step: Step
    task: str
    precision: DType
    model: str
    signature: Signature
    source: Source
    recipe: ExportRecipe
    processing: Processing
    parity: ParityReport | None
    tools: Mapping[str, str]
    created: str
    files: tuple[FileEntry, ...] = ()
    facts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parent: Parent | None = None
    quantization: Quantization | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    engine: EngineBuild | None = None
    encoder: Parent | None = None

    def to_json(self) -> str:
        """The text of ``tfx.json``."""
        document = {"schema": SCHEMA_VERSION, **encode(self)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Read the text of a ``tfx.json``.

        Args:
            text: The file's content.
            where: Its path, for messages.

        Raises:
            BundleError: If it is not JSON, has another schema version, lacks or misspells
                a field, or names a path outside the bundle.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # also a number or a nesting without end
            raise BundleError(
                f"{where} is damaged: {error}", hint="Make the bundle again."
            ) from error
        schema = document.pop("schema", None) if isinstance(document, dict) else None
        if type(schema) is not int or schema < 1:
            raise BundleError(
                f"{where} is not a bundle manifest: no schema version",
                hint="Name a folder that tfx export, quantize or build wrote.",
            )
        if schema > SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema {schema}, this version reads up to {SCHEMA_VERSION}",
                hint="Upgrade: pip install --upgrade tfx-toolkit",
            )
        try:
            manifest = decode(cls, document)
        except DecodeError as error:
            raise BundleError(
                listing(f"{where} is damaged:", error.problems), hint="Make the bundle again."
            ) from error
        if problems := _path_problems(manifest):
            raise BundleError(
                listing(f"{where} is not safe to open:", problems),
                hint="Do not use this bundle; ask where it came from.",
            )
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return {"schema": SCHEMA_VERSION, **encode(self)}


def is_contained(path: str) -> bool:
    """Whether a manifest's path stays inside the bundle.

    Absolute paths, ``..``, backslashes and drive letters lead elsewhere on one system or
    another, and control characters and lone surrogates cannot be shown or stored on some, so
    they are refused on all.
    """
    pure = PurePosixPath(path)
    return (
        bool(pure.parts)
        and path == str(pure)
        and not pure.is_absolute()
        and ".." not in pure.parts
        and "\\" not in path
        and ":" not in path
        and path.isprintable()
        and path != FILE_NAME
    )


def _path_problems(manifest: Manifest) -> list[str]:
    paths = [entry.path for entry in manifest.files]
    problems = [f"{path!r}: path leaves the bundle" for path in paths if not is_contained(path)]
    problems += [f"{path!r}: listed twice" for path in sorted(set(paths)) if paths.count(path) > 1]
    if problems:
        return problems  # what is used and not listed would only say it again
    used = [manifest.model, *manifest.variants.values()]
    if manifest.processing.tokenization is not None:
        used.append(manifest.processing.tokenization.file)
    said = manifest.processing.generation
    if said is not None and said.chat_template:
        used.append(said.chat_template)
    problems += [f"{path!r}: used and not listed" for path in used if path not in paths]
    return problems

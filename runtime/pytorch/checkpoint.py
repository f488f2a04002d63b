"""Find a source's checkpoint folder or configuration on this machine, or fetch it from the hub."""

from __future__ import annotations

import importlib.util
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tfx.errors import SourceError
from tfx.extras import install_hint, need
from tfx.models import KNOWN_MODELS
from tfx.recipe import Source, SourceKind

from .adapters import read_adapter

# What an export reads; weights in other formats would only cost the transfer.
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def checkpoint_folder(source: Source) -> Path:
    """The local folder that holds the checkpoint of ``source``.

    Raises:
        SourceError: If it is not on this machine and cannot be fetched.
    """
    match source.kind:
        case SourceKind.CHECKPOINT:
            return _existing(Path(source.location))
        case SourceKind.PACKAGE:
            return package_folder(source.location)
        case SourceKind.HUB:
            return hub_folder(source.location, source.revision)
    raise SourceError(f"a {source.kind} source has no checkpoint folder", hint="Name a checkpoint.")


def config_of(source: Source) -> Any:
    """The transformers configuration of ``source``, as wide as its adapter's head.

    Raises:
        SourceError: If there is none.
    """
    config = _own_config(source)
    if source.changes.adapter:
        labels = read_adapter(source.changes.adapter).labels()
        # Setting it forgets the names of the checkpoint's own labels.
        if labels and labels != config.num_labels:
            config.num_labels = labels
    return config


def _own_config(source: Source) -> Any:
    transformers = need("transformers")
    if source.kind is SourceKind.CONFIG:
        if source.location not in KNOWN_MODELS:
            raise SourceError(
                f"no known model {source.location!r}",
                hint=f"Use one of: {', '.join(KNOWN_MODELS)}.",
            )
        known = KNOWN_MODELS[source.location]
        return getattr(transformers, known.config)(**known.sizes)
    try:
        # Code inside a checkpoint is never run; without the flag transformers asks on stdin.
        return transformers.AutoConfig.from_pretrained(
            checkpoint_folder(source), trust_remote_code=False
        )
    except SourceError:
        raise
    # OSError, ValueError, KeyError, and the validation errors of its configuration classes.
    except Exception as error:
        raise SourceError(
            f"cannot read the config.json of {source.location}: {_short(error)}",
            hint="Check the file; a model whose code is not in transformers needs a factory.",
        ) from error


def package_folder(location: str) -> Path:
    """The folder of ``"import_name:folder"``, without importing the package.

    A bundle says which, and to look for a name with dots imports what stands before the last
    one: only the packages of ``KNOWN_MODELS`` are looked for.

    Raises:
        SourceError: If it is none of those, is not installed, or has no such folder.
    """
    known = sorted({model.package for model in KNOWN_MODELS.values() if model.package})
    if location not in known:
        raise SourceError(
            f"no known package of weights {location!r}", hint=f"Use one of: {', '.join(known)}."
        )
    package, _, folder = location.partition(":")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"the package {package} is not installed", hint=install_hint(package))
    return _existing(Path(spec.submodule_search_locations[0]) / folder)


def hub_folder(repository: str, revision: str = "") -> Path:
    """The local snapshot of a hub repository, from the cache or else from the hub.

    Raises:
        SourceError: If neither has it.
    """
    hub = need("huggingface_hub")
    try:
        return Path(
            hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=HUB_FILES,
                local_files_only=True,
            )
        )
    except (OSError, ValueError) as error:
        not_cached = error
    try:
        return Path(
            hub.snapshot_download(repository, revision=revision or None, allow_patterns=HUB_FILES)
        )
    # The hub client raises its own kinds, those of its HTTP library, and OSError.
    except Exception as error:
        reason = _short(error) or _short(not_cached)
        raise SourceError(
            f"{repository!r} is not in the local cache and the hub did not give it: {reason}",
            hint=_offline_hint(repository),
        ) from error


def hub_commit(repository: str) -> str:
    """The commit of the snapshot ``hub_folder`` gives for the main branch.

    Raises:
        SourceError: If neither the cache nor the hub has it.
    """
    # .../snapshots/<commit>: the layout of huggingface_hub's cache.
    return hub_folder(repository).name


def _offline_hint(repository: str) -> str:
    hint = "Check the name and the network, or name a local folder"
    aliases = [alias for alias, known in KNOWN_MODELS.items() if known.hub == repository]
    if aliases:
        for alias in aliases:
            if (Path(alias) / "config.json").is_file():
                return f"{hint}: ./{alias}"
        return f"{hint}; for latency work alone: tfx export {aliases[0]} --random-weights"
    if near := get_close_matches(repository, KNOWN_MODELS, n=1):
        return f"Write {near[0]} if you meant that; otherwise {hint[0].lower()}{hint[1:]}."
    return f"{hint}; for latency work alone use an alias with --random-weights: " + ", ".join(
        KNOWN_MODELS
    )


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _existing(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} is not a checkpoint folder: it has no config.json",
            hint="Name the folder that save_pretrained wrote, or file.py:factory.",
        )
    return folder

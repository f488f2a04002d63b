"""PyTorch modules: load one from its source, and run it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.chatter import quiet
from tfx.errors import SourceError
from tfx.extras import need
from tfx.recipe import Source, SourceKind
from tfx.signature import Feed

from .changes import change_module
from .names import named_outputs, named_weights
from .parts import part_of, whole_of

if TYPE_CHECKING:
    import torch

# Threads and fast path are settings of the whole process: one run at a time has its own.
# A model may open a session of its own, so the thread that holds the lock may take it again.
_SETTINGS = threading.RLock()


# A module, or a function that is called as one.
Call = Callable[..., Any]


def load_module(source: Source) -> torch.nn.Module:
    """Load a PyTorch model in eval mode, with float32 weights.

    Args:
        source: Where it comes from; its ``class_name`` says which head, its ``seed`` makes
            random weights the same each time, and its ``changes`` are made to what was loaded.

    Raises:
        SourceError: If it is not there, has no safe weights, or does not load.
    """
    need("torch")  # with a hint how to install it; the functions below just import it
    if source.kind is SourceKind.FACTORY:
        module, _ = call_factory(source)
    elif source.kind is SourceKind.MODULE:
        raise SourceError(
            "a module handed over in memory cannot be loaded again",
            hint="Export from a file instead: file.py:function.",
        )
    else:
        module = _load_transformers(source)
        if source.changes:
            with quiet():
                module = change_module(module, source.changes)
        module = part_of(module, source.part) if source.part else whole_of(module)
    return module.eval()


def call_factory(source: Source) -> tuple[torch.nn.Module, Any]:
    """Run ``file.py:function``, which returns a module and its example inputs.

    Raises:
        SourceError: If the file or function is missing, fails, or returns something else, or
            the file is not the one of the source's ``file_digest``; then nothing has run.
    """
    import torch

    path, name, data = _factory_file(source)
    found = hashlib.sha256(data).hexdigest()
    if source.file_digest and found != source.file_digest:
        raise SourceError(
            f"{path} is another file now: sha256 {found[:12]}, "
            f"the bundle was made from {source.file_digest[:12]}",
            hint="Export it again.",
        )
    # A name of its own, so that the file cannot stand in for an installed module.
    key = f"_tfx_factory_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None:
        raise SourceError(f"{path} is not a Python file", hint="Name it as file.py:function.")
    code = importlib.util.module_from_spec(spec)
    sys.modules[key] = code  # dataclasses and pickling look the module up there
    try:
        # The bytes that were digested, and no cache beside the file.
        exec(compile(data, str(path), "exec", dont_inherit=True), code.__dict__)
        factory = getattr(code, name, None)
        if not callable(factory):
            raise SourceError(
                f"{path} has no function {name!r}",
                hint="Name a function of that file: file.py:function.",
            )
        torch.manual_seed(source.seed)
        result = factory()
    except SourceError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        raise SourceError(f"{source.location} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.modules.pop(key, None)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise SourceError(
            f"{source.location} returned {type(result).__name__}, expected (module, example_inputs)"
        )
    module, examples = result
    if not isinstance(module, torch.nn.Module):
        raise SourceError(
            f"{source.location} returned a {type(module).__name__} first, expected an nn.Module"
        )
    return module, examples


def factory_digest(source: Source) -> str:
    """sha256 of a factory's file.

    Raises:
        SourceError: If it is missing or cannot be read.
    """
    return hashlib.sha256(_factory_file(source)[2]).hexdigest()


def _factory_file(source: Source) -> tuple[Path, str, bytes]:
    file, _, name = source.location.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SourceError(f"no such file: {path}", hint="Name it as file.py:function.")
    try:
        return path, name, path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def run_module(module: Call, feed: Feed, *, threads: int | None = None) -> dict[str, np.ndarray]:
    """Call ``module`` with copies of the arrays of ``feed``; its outputs, flat and named.

    Args:
        module: In eval mode, or what calls one.
        feed: Parameter of ``forward`` to array.
        threads: CPU threads of the run; None for as many as PyTorch has now.
    """
    import torch

    # Copies: a module may write to its inputs, and PyTorch takes no negative strides.
    inputs = {name: torch.from_numpy(np.array(array, order="C")) for name, array in feed.items()}
    with run_settings(threads), torch.inference_mode():
        outputs = module(**inputs)
    return {name: tensor.numpy() for name, tensor in named_outputs(outputs).items()}


@contextmanager
def run_settings(threads: int | None) -> Iterator[None]:
    """Have PyTorch's settings as a run needs them, for one thread at a time.

    Args:
        threads: CPU threads; None for as many as PyTorch has now.
    """
    import torch

    with _SETTINGS:
        before = torch.get_num_threads()
        # With padding masks the fast path of nn.TransformerEncoder answers zeros at padded
        # positions, or not, depending on the feed; the plain path is what a graph can follow.
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        if threads not in (None, before):
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            if threads not in (None, before):
                torch.set_num_threads(before)


def weights_digest(module: torch.nn.Module) -> str:
    """sha256 over the name, dtype, shape and bytes of every parameter and buffer."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(named_weights(module), key=lambda weight: weight[0]):
        array = tensor.detach().contiguous().cpu()
        digest.update(f"{name}:{array.dtype}:{tuple(array.shape)}".encode())
        digest.update(memoryview(array.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def without_cache(config: Any) -> None:
    """Turn the cache off in a configuration of transformers and in those inside it."""
    config.use_cache = False
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None:
            without_cache(inner)


def _load_transformers(source: Source) -> torch.nn.Module:
    import torch

    transformers = need("transformers")
    from .adapters import read_adapter
    from .checkpoint import checkpoint_folder, config_of

    cls = getattr(transformers, source.class_name, None)
    # A bundle says which: a model, and nothing else that transformers can call.
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise SourceError(
            f"transformers {transformers.__version__} has no model {source.class_name!r}",
            hint="Install the version of transformers that the bundle was made with.",
        )
    config = config_of(source)
    # An adapter that was trained with a head brings the head's weights.
    adapter = source.changes.adapter
    adapted = read_adapter(adapter).replaced().keys() if adapter else ()
    # One forward, no generation: a cache would only be one more output.
    without_cache(config)
    try:
        with quiet():  # progress bars and advice
            if source.random_weights:
                torch.manual_seed(source.seed)
                module = cls(config)
            else:
                module = _load_weights(cls, checkpoint_folder(source), config, adapted)
    except SourceError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds
        cut = "header" in str(error) and type(error).__name__ == "SafetensorError"
        damage = "its weights are cut short or damaged: " if cut else ""
        raise SourceError(
            f"cannot load {source}: {damage}{error}",
            hint="Copy or download model.safetensors again." if cut else "",
        ) from error
    loaded: torch.nn.Module = module
    return loaded


def _load_weights(
    cls: Any, folder: Path, config: Any, adapted: Collection[str] = ()
) -> torch.nn.Module:
    import torch

    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        raise SourceError(
            f"{folder} has no safetensors weights"
            + (
                f", only {', '.join(pickles)}: a pickle runs code when it is read"
                if pickles
                else ""
            ),
            hint="Save the model again with save_pretrained (safetensors is its default).",
        )
    options: dict[str, Any] = {}
    while True:
        module, info = cls.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # said below, with names; transformers prints them
            **options,
        )
        mismatched = sorted(key for key in info["mismatched_keys"] if key[0] not in adapted)
        if mismatched:
            name, found, expected = mismatched[0]
            raise SourceError(
                f"{len(mismatched)} tensors of the checkpoint do not fit its config.json: {name} "
                f"is {list(found)}, expected {list(expected)}",
                hint="Check that config.json belongs to these weights.",
            )
        missing = sorted(set(info["missing_keys"]) - set(adapted))
        if not missing:
            loaded: torch.nn.Module = module
            return loaded
        # Checkpoints without a pooler are common, and transformers would make up its weights.
        if not options and all("pooler" in key.split(".") for key in missing):
            options = {"add_pooling_layer": False}
            continue
        raise SourceError(
            f"the checkpoint has no weights for {len(missing)} tensors of {cls.__name__}: "
            + ", ".join(missing[:3])
            + (", ..." if len(missing) > 3 else ""),
            hint="Choose the head the checkpoint was trained with (--task), or leave --task out.",
        )

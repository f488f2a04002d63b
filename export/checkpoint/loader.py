"""A name, folder or factory to a PyTorch model: which source, which head, which weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.bundle import is_bundle
from tfx.chatter import quiet
from tfx.errors import SourceError
from tfx.extras import install_hint, need
from tfx.models import KNOWN_MODELS
from tfx.recipe import (
    DECODER,
    GENERATING_DECODER,
    GENERATING_PARTS,
    GENERATOR,
    PARTS,
    Changes,
    ExportRecipe,
    Source,
    SourceKind,
)
from tfx.runtime.pytorch.adapters import read_adapter
from tfx.runtime.pytorch.checkpoint import checkpoint_folder, config_of, hub_commit
from tfx.runtime.pytorch.generators import NO_CACHE, no_cache
from tfx.runtime.pytorch.modules import call_factory, factory_digest, load_module, weights_digest
from tfx.runtime.pytorch.names import named_weights
from tfx.runtime.pytorch.pairs import no_pair_cache
from tfx.runtime.pytorch.parts import notes_of
from tfx.runtime.pytorch.trimming import trim_config

from ..changes import describe_changes, task_of_adapter
from .tokenization import has_tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

# huggingface_hub.utils.validate_repo_id: [organisation/]name
HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")


# How transformers names its heads -> the task, where optimum's table has no entry.
TASK_OF_ENDING = {
    "ForImageClassification": "image-classification",
    "ForVideoClassification": "video-classification",
    "ForPrediction": "time-series-forecasting",
    "WithProjection": "feature-extraction",
}

# Heads whose decoder reads the input again, shifted by one: one pass, no target of its own.
ONE_PASS = ("ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to be traced.

    Attributes:
        name: Good for a folder, e.g. "minilm".
        source: Where it came from, with the digest of its weights.
        task: As optimum spells it; "" for hand-written modules and heads without a name.
        module: In eval mode, float32.
        config: Its transformers configuration; None for hand-written modules.
        folder: The checkpoint's folder; None where there is none.
        examples: What a factory returned besides the module; None for transformers models.
        notes: What was changed in it, a sentence each.
    """

    name: str
    source: Source
    task: str
    module: torch.nn.Module
    config: Any
    folder: Path | None
    examples: Any
    notes: tuple[str, ...] = ()


def name_of(model: str | torch.nn.Module) -> str:
    """A good name for the bundle of ``model``: the last part of its name, or its class."""
    if not isinstance(model, str):
        return type(model).__name__.lower()
    file, colon, factory = model.rpartition(":")
    if colon and file.endswith(".py"):
        return factory
    return Path(model).resolve().name or "model"


def find_source(model: str, recipe: ExportRecipe) -> Source:
    """Say what ``model`` names, without loading it.

    Args:
        model: An alias of ``KNOWN_MODELS``, a folder in the Hugging Face layout, a hub id, or
            ``file.py:factory``.
        recipe: Its ``random_weights`` and ``seed`` become the source's.

    Raises:
        SourceError: If it can be none of these.
    """
    file, colon, factory = model.rpartition(":")
    if colon and file.endswith(".py"):
        if recipe.random_weights:
            raise SourceError(
                "a factory makes its own weights, --random-weights does not apply",
                hint="Leave it out.",
            )
        _refuse_changes(recipe, "a factory")
        if not factory.isidentifier():
            raise SourceError(f"{factory!r} is not the name of a function", hint=_NAMES)
        return Source(SourceKind.FACTORY, model, seed=recipe.seed)
    if model.endswith(".py"):
        raise SourceError(
            f"{model} names a file and no function in it", hint=f"Write {model}:function."
        )
    # An alias stands for a checkpoint; a folder of that name is probably the bundle made of it.
    if model in KNOWN_MODELS:
        return _source_of_alias(model, recipe)
    path = Path(model)
    if path.is_dir():
        if is_bundle(path):
            raise SourceError(
                f"{path} is a bundle already, not a PyTorch model",
                hint="Name the checkpoint it was made from.",
            )
        return Source(
            SourceKind.CHECKPOINT,
            str(path),
            seed=recipe.seed,
            random_weights=recipe.random_weights,
        )
    if path.exists():
        raise SourceError(f"{path} is a file, expected a checkpoint folder", hint=_NAMES)
    if model.startswith((".", "/", "~")) or not HUB_ID.fullmatch(model):
        raise SourceError(f"no such folder: {model}", hint=_NAMES)
    return Source(SourceKind.HUB, model, seed=recipe.seed, random_weights=recipe.random_weights)


def load(model: str | torch.nn.Module, recipe: ExportRecipe, examples: Any = None) -> Loaded:
    """Load a PyTorch model for export.

    Args:
        model: A name as ``find_source`` reads it, or a module.
        recipe: Which task, and whether weights are random.
        examples: Example inputs, for a module only.

    Raises:
        SourceError: If it is not there, has no safe weights, or does not load.
    """
    if not isinstance(model, str):
        return _loaded_module(model, recipe, examples)
    source = find_source(model, recipe)
    if source.kind is SourceKind.FACTORY:
        with quiet():
            source = dataclasses.replace(source, file_digest=factory_digest(source))
            module, examples = call_factory(source)
        return _loaded(name_of(model), source, "", module, examples=examples)
    source = dataclasses.replace(source, changes=recipe.changes)
    with quiet():
        if source.kind is SourceKind.HUB:
            # The commit, so that the torch reference stays the same when the branch moves.
            source = dataclasses.replace(source, revision=hub_commit(source.location))
        config = config_of(source)
        class_name, task = _class_of(source, config, recipe.task)
        part = _checked_part(config, class_name, recipe.part)
        if part in (*PARTS, *GENERATING_PARTS):
            _refuse_trimming(class_name, source.changes)
        source = dataclasses.replace(source, class_name=class_name, part=part)
        folder = None if source.kind is SourceKind.CONFIG else checkpoint_folder(source)
        if folder is not None and _reads_text(class_name, part) and has_tokenizer(folder):
            load_tokenizer(folder)  # of one that is damaged it is said before minutes of tracing
        module = load_module(source)
    notes = describe_changes(source.changes, config)
    notes = (*notes, *notes_of(class_name, config, part))
    if source.changes.layers:
        trim_config(config, source.changes.layers)
    return _loaded(name_of(model), source, task, module, config=config, folder=folder, notes=notes)


def parts_of(model: str, recipe: ExportRecipe, *, cache: bool | None = False) -> tuple[str, ...]:
    """The parts a model is exported in.

    Args:
        model: Its name.
        recipe: Which task.
        cache: Whether a model that generates brings its cache; None for one that can.

    Returns:
        ``PARTS`` or, with a cache, ``GENERATING_PARTS`` of an encoder-decoder; ``(GENERATOR,)``,
        or ``("",)`` for one graph.

    Raises:
        SourceError: If the model cannot be found, or a cache is asked of one that has none.
    """
    source = find_source(model, recipe)
    if source.kind is SourceKind.FACTORY:
        if cache:
            raise SourceError("a factory's module is exported for one pass", hint=NO_CACHE)
        return ("",)
    source = dataclasses.replace(source, changes=recipe.changes)
    with quiet():
        config = config_of(source)
        class_name, _ = _class_of(source, config, recipe.task)
    if is_encoder_decoder(config, class_name):
        if cache is False:
            return PARTS
        problem = no_pair_cache(config, class_name)
        if problem and cache:
            raise SourceError(f"{class_name} {problem}", hint=NO_CACHE)
        return PARTS if problem else GENERATING_PARTS
    if cache is False:
        return ("",)
    problem = no_cache(config, class_name)
    if not problem and recipe.changes.attentions:
        problem = "gives attention maps in one pass only"
    if problem and cache:
        raise SourceError(f"{class_name} {problem}", hint=NO_CACHE)
    return ("",) if problem else (GENERATOR,)


def is_encoder_decoder(config: Any, class_name: str) -> bool:
    """Whether a class reads a target beside its input, and so becomes two graphs."""
    cls = getattr(need("transformers"), class_name, None)
    if class_name.endswith(ONE_PASS):
        return False
    # DETR calls itself an encoder-decoder too; its queries are weights, not an input.
    return (
        cls is not None
        and bool(getattr(config, "is_encoder_decoder", False))
        and bool(
            {"decoder_input_ids", "decoder_input_values"}
            & inspect.signature(cls.forward).parameters.keys()
        )
    )


def choose_class(config: Any, task: str, default: str = "") -> tuple[str, str]:
    """The transformers class that loads a checkpoint, and the task it is for.

    Args:
        config: The checkpoint's configuration.
        task: A task of optimum's ``TasksManager``, or "auto": the class the checkpoint was
            saved from.
        default: Class to use where the configuration names none.

    Returns:
        Class name and task.

    Raises:
        SourceError: If there is no such task, or none for this model.
    """
    manager = need("optimum.exporters.tasks").TasksManager
    if task == "auto":
        name = (config.architectures or [default])[0]
        if not name:
            raise SourceError(
                "config.json names no architecture",
                hint="Choose the head: --task feature-extraction, text-classification, ...",
            )
        return name, _task_of(manager, name)
    task = manager.map_from_synonym(task)
    known = sorted(manager.get_all_tasks())
    if task not in known:
        raise SourceError(f"no task called {task!r}", hint=f"Use one of: {', '.join(known)}.")
    try:
        auto = manager.get_model_class_for_task(task, model_type=config.model_type)
        return auto._model_mapping[type(config)].__name__, task
    except (KeyError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{config.model_type} models have no head for {task!r}",
            hint="Leave --task out for the checkpoint's own head.",
        ) from error


_NAMES = "Use an alias ({}), a checkpoint folder, a hub id or file.py:factory.".format(
    ", ".join(KNOWN_MODELS)
)


def _source_of_alias(alias: str, recipe: ExportRecipe) -> Source:
    known = KNOWN_MODELS[alias]
    if recipe.random_weights:
        return Source(SourceKind.CONFIG, alias, seed=recipe.seed, random_weights=True)
    if known.package:
        package = known.package.partition(":")[0]
        if importlib.util.find_spec(package) is None:
            raise SourceError(
                f"the weights of {alias!r} are in the package {package}, which is not installed",
                hint=install_hint(package),
            )
        return Source(SourceKind.PACKAGE, known.package)
    return Source(SourceKind.HUB, known.hub)


def _default_class(source: Source) -> str:
    return KNOWN_MODELS[source.location].class_name if source.kind is SourceKind.CONFIG else ""


def _class_of(source: Source, config: Any, task: str) -> tuple[str, str]:
    """The class and task of a source: what was asked for, its adapter's, or its own."""
    if task == "auto" and source.changes.adapter:
        adapter = read_adapter(source.changes.adapter)
        task = task_of_adapter(adapter) or task
        if task == "auto" and hasattr(need("transformers"), adapter.class_name):
            made_for = getattr(need("transformers"), adapter.class_name).config_class
            if made_for is not None and not isinstance(config, made_for):
                raise SourceError(
                    f"the adapter {adapter.folder} was made for {adapter.class_name}, got "
                    f"a model of type {config.model_type}",
                    hint="Name the checkpoint that it was trained on.",
                )
            manager = need("optimum.exporters.tasks").TasksManager
            return adapter.class_name, _task_of(manager, adapter.class_name)
    return choose_class(config, task, _default_class(source))


def _refuse_changes(recipe: ExportRecipe, what: str) -> None:
    if recipe.changes:
        raise SourceError(
            f"{what} is taken as it is: --adapter, --layers, --drop-heads and --attentions "
            "are for models of transformers",
            hint="Leave them out, and change the module where it is made.",
        )


def _refuse_trimming(class_name: str, changes: Changes) -> None:
    asked = {
        "--layers": changes.layers,
        "--drop-heads": changes.drop_heads,
        "--attentions": changes.attentions,
    }
    if found := [option for option, value in asked.items() if value]:
        raise SourceError(
            f"{class_name} is an encoder-decoder: {', '.join(found)} cannot be used, "
            "only on models of one graph",
            hint="Leave it out; --adapter works on both parts.",
        )


def _checked_part(config: Any, class_name: str, part: str) -> str:
    if is_encoder_decoder(config, class_name):
        if part not in (*PARTS, *GENERATING_PARTS):
            raise SourceError(
                f"{class_name} is an encoder-decoder: two graphs, not one",
                hint="Choose part='encoder' or part='decoder', or use export_bundles.",
            )
        if part in GENERATING_PARTS and (problem := no_pair_cache(config, class_name)):
            raise SourceError(f"{class_name} {problem}", hint=NO_CACHE)
    elif part == GENERATOR:
        if problem := no_cache(config, class_name):
            raise SourceError(f"{class_name} {problem}", hint=NO_CACHE)
    elif part:
        raise SourceError(f"{class_name} has no {part}: it is one graph", hint="Leave part out.")
    return part


def _reads_text(class_name: str, part: str) -> bool:
    """Whether texts are made tokens for it; a decoder's are what it wrote itself."""
    cls = getattr(need("transformers"), class_name, None)
    decodes = part in (DECODER, GENERATING_DECODER)
    return not decodes and getattr(cls, "main_input_name", "") == "input_ids"


def _task_of(manager: Any, class_name: str) -> str:
    transformers = need("transformers")
    cls = getattr(transformers, class_name, None)
    if cls is None:
        raise SourceError(
            f"transformers {transformers.__version__} has no {class_name!r}, "
            "the class config.json names",
            hint="Upgrade transformers, choose a head with --task, or write a factory.",
        )
    try:
        task: str = manager.infer_task_from_model(cls)
    except ValueError:
        # optimum does not know every class; the class itself is known, and that decides.
        ending = next((end for end in TASK_OF_ENDING if class_name.endswith(end)), "")
        task = TASK_OF_ENDING.get(ending, "")
    return task


def _loaded_module(module: torch.nn.Module, recipe: ExportRecipe, examples: Any) -> Loaded:
    torch = need("torch")
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"got {type(module).__name__}, expected a name or an nn.Module")
    if examples is None:
        raise SourceError(
            "a module in memory needs example inputs",
            hint="Pass examples={'input name': tensor, ...}.",
        )
    _refuse_changes(recipe, "a module in memory")
    source = Source(SourceKind.MODULE, type(module).__name__, seed=recipe.seed)
    return _loaded(name_of(module), source, "", module, examples)


def _loaded(
    name: str,
    source: Source,
    task: str,
    module: torch.nn.Module,
    examples: Any = None,
    config: Any = None,
    folder: Path | None = None,
    notes: tuple[str, ...] = (),
) -> Loaded:
    torch = need("torch")
    wrong = {
        str(weight.dtype)
        for _, weight in named_weights(module)
        if weight.is_floating_point() and weight.dtype != torch.float32
    }
    if wrong:
        raise SourceError(
            f"the module holds {', '.join(sorted(wrong))} weights, expected torch.float32",
            hint="Export in float32 (module.float()); lower the precision of the bundle after.",
        )
    module.eval()
    source = dataclasses.replace(source, digest=weights_digest(module))
    return Loaded(name, source, task, module, config, folder, examples, notes)

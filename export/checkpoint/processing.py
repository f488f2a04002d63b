"""A checkpoint's tokenizer, images, sound, pooling and labels to the Processing of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfx.errors import SourceError
from tfx.processing import Activation, Classification, Embedding, Pooling, Processing
from tfx.recipe import DECODER, GENERATING_DECODER
from tfx.signature import Signature

from .audio import read_audio, read_transcription
from .dictation import read_dictation
from .images import read_images
from .settings import read_json
from .tokenization import write_tokenizer

# Before version 5, sentence-transformers wrote one flag per pooling mode.
LEGACY_POOLING = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LENGTH,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
}

# Task -> whether each token is classified; all others classify the whole input.
CLASSIFYING = {
    "text-classification": False,
    "image-classification": False,
    "audio-classification": False,
    "token-classification": True,
}

# Of a whole model, CTC; of an encoder-decoder, text that goes on.
SPEECH = "automatic-speech-recognition"


def read_processing(
    folder: Path, config: Any, task: str, signature: Signature, target: Path, part: str = ""
) -> tuple[Processing, tuple[str, ...]]:
    """Read what a checkpoint says about texts, images, sound and answers; write its tokenizer.

    Args:
        folder: A checkpoint in the Hugging Face layout; sentence-transformers' own files in
            it (``modules.json``) say how embeddings are made.
        config: Its transformers configuration.
        task: What the exported head is for.
        signature: Of the graph; bounds the length of a text.
        target: Folder that the tokenizer's JSON is written to.
        part: "encoder", "decoder", or "" for a whole model.

    Returns:
        The processing, and a sentence for each part that is there and cannot be carried over.

    Raises:
        SourceError: If a file of the checkpoint is damaged.
    """
    notes: list[str] = []
    tokenization = None
    # A decoder's input_ids are its own output so far, not a text to be read.
    decodes = part in (DECODER, GENERATING_DECODER)
    if not decodes and any(spec.name == "input_ids" for spec in signature.inputs):
        tokenization = write_tokenizer(folder, signature, target, notes)
    names = {spec.name for spec in signature.outputs}
    embedding = classification = None
    if "last_hidden_state" in names and (folder / "modules.json").is_file():
        embedding = _embedding(folder, notes)
    if task in CLASSIFYING and "logits" in names and config.id2label:
        classification = classification_of(config, per_token=CLASSIFYING[task])
    images = read_images(folder, signature, notes)
    audio = read_audio(folder, signature, notes)
    transcription = dictation = None
    if task == SPEECH and part == "":
        transcription = read_transcription(folder, config, signature, notes)
    if task == SPEECH and part == GENERATING_DECODER:
        dictation = read_dictation(config, folder, notes)
        if dictation is not None:  # its encoder, which has the tokenizer of others, reads no text
            tokenization = write_tokenizer(folder, signature, target, notes)
    processing = Processing(
        tokenization,
        embedding,
        classification,
        images,
        audio=audio,
        transcription=transcription,
        dictation=dictation,
    )
    return processing, tuple(notes)


def classification_of(config: Any, *, per_token: bool) -> Classification:
    """Labels and activation of a classification head, as transformers' pipelines choose them."""
    labels = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    chosen = getattr(config, "sentence_transformers", None) or {}
    # Cross-encoders say it themselves: "torch.nn.modules.linear.Identity".
    written = chosen.get("activation_fn") or getattr(
        config,
        "sbert_ce_default_activation_function",  # before sentence-transformers 4
        "",
    )
    named = str(written).rpartition(".")[2].lower()
    if named == "identity" or (not per_token and config.problem_type == "regression"):
        activation = Activation.NONE
    elif named == "sigmoid" or (
        not per_token and (config.problem_type == "multi_label_classification" or len(labels) == 1)
    ):
        activation = Activation.SIGMOID
    else:
        activation = Activation.SOFTMAX
    return Classification("logits", labels, activation, per_token)


def _embedding(folder: Path, notes: list[str]) -> Embedding | None:
    pooling: tuple[Pooling, ...] = ()
    normalize = False
    for module in read_json(folder / "modules.json", expected=list):
        if not isinstance(module, dict):
            raise SourceError(
                f"{folder / 'modules.json'} is damaged: {module!r} is not a module",
                hint="Copy or download the file again.",
            )
        match str(module.get("type", "")).rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                modes = _pooling_modes(read_json(folder / str(module.get("path")) / "config.json"))
                if modes is None:
                    notes.append("its pooling is not known here: predict gives token vectors")
                    return None
                pooling = modes
            case "Normalize":
                normalize = True
            case other:
                notes.append(f"it has a {other} module: predict gives token vectors")
                return None
    prompts = read_json(folder / "config_sentence_transformers.json")
    if prompts.get("default_prompt_name"):
        name = prompts["default_prompt_name"]
        notes.append(f"its default prompt {name!r} is not added: put it in the text")
    return Embedding("last_hidden_state", pooling, normalize) if pooling else None


def _pooling_modes(config: dict[str, Any]) -> tuple[Pooling, ...] | None:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in LEGACY_POOLING.items() if config.get(flag)]
        if config.get("pooling_mode_weightedmean_tokens"):
            modes.append("weightedmean")
    elif isinstance(modes, str):
        modes = [modes]
    if not modes or not set(modes) <= set(Pooling):
        return None
    return tuple(Pooling(mode) for mode in modes)

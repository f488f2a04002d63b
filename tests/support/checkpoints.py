"""Tiny checkpoints in the Hugging Face layout, with random weights and a real tokenizer."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("alpha", "beta", "gamma", "delta", "a", "model", "of", "two", "heads", "and", "masks")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 64
POSITIONS = 64

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}


def write_tokenizer(folder: Path, *, model_max_length: int = POSITIONS, **special) -> None:
    """A word-level tokenizer with ``[CLS] ... [SEP]`` around a text, case kept as it is."""
    tokenizer = Tokenizer(
        models.WordLevel(
            {word: index for index, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | special
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=model_max_length, **names
    ).save_pretrained(folder)


def write_checkpoint(
    folder: Path, cls, config, *, seed: int = 0, tokenizer: bool = True, std: float = 0.0
) -> Path:
    """Save a randomly initialised model.

    Args:
        folder: Folder to make.
        cls: transformers class, whose name goes into ``config.json``.
        config: Its configuration.
        seed: Of the weights.
        tokenizer: Whether to write one too.
        std: Of every weight matrix, and of what is added to every vector; 0 for transformers'
            own 0.02, which makes attention of tiny models almost uniform.
    """
    torch.manual_seed(seed)
    model = cls(config).eval()
    if std:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=std)
                else:  # biases of 0 and scales of 1 would hide one that is lost
                    weight.add_(torch.randn_like(weight) * std)
    model.save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def bert(folder: Path, cls=transformers.BertModel, *, tokenizer: bool = True, **changes) -> Path:
    """A BERT with any of its heads; ``changes`` replace values of its configuration."""
    return write_checkpoint(
        folder, cls, transformers.BertConfig(**(SIZES | changes)), tokenizer=tokenizer, std=0.3
    )


def roberta(folder: Path, **changes) -> Path:
    """A RoBERTa; its position table has two rows more than it has positions."""
    sizes = SIZES | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1} | changes
    return write_checkpoint(
        folder, transformers.RobertaModel, transformers.RobertaConfig(**sizes), std=0.3
    )


def distilbert(folder: Path, **changes) -> Path:
    """A DistilBERT; it has no token types."""
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=POSITIONS,
        **changes,
    )
    return write_checkpoint(folder, transformers.DistilBertModel, config, std=0.3)


def vit(folder: Path, cls=transformers.ViTForImageClassification, **changes) -> Path:
    """A ViT for images of 16 x 16 pixels, in patches of 4."""
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        **changes,
    )
    return write_checkpoint(folder, cls, config, tokenizer=False, std=0.3)


def write_sentence_transformers(
    folder: Path,
    *,
    pooling: dict | None = None,
    normalize: bool = False,
    modules: tuple[str, ...] = (),
    sentence: dict | None = None,
    prompts: dict | None = None,
) -> Path:
    """Add the files of sentence-transformers to a checkpoint.

    Args:
        folder: The checkpoint.
        pooling: Content of ``1_Pooling/config.json``, by default mean pooling.
        normalize: Whether a Normalize module comes last.
        modules: Names of more modules after pooling.
        sentence: Content of ``sentence_bert_config.json``.
        prompts: Content of ``config_sentence_transformers.json``.
    """
    steps = ["Transformer", "Pooling", *modules, *(["Normalize"] if normalize else [])]
    listed = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{step}",
            "type": f"sentence_transformers.models.{step}",
        }
        for index, step in enumerate(steps)
    ]
    write_json(folder / "modules.json", listed)
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
        if pooling is None
        else pooling,
    )
    if sentence is not None:
        write_json(folder / "sentence_bert_config.json", sentence)
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def write_json(path: Path, document) -> None:
    """Write one JSON file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")

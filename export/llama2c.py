"""Weights in the format of llama2.c to a folder in the Hugging Face layout.

Run it as ``python -m tfx.export.llama2c MODEL.bin TOKENIZER.bin FOLDER``. The stories it was made
for (``stories260K``) are language models small enough for a test that tell something.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tfx.errors import SourceError
from tfx.extras import need

if TYPE_CHECKING:
    import tokenizers

HEADER = struct.Struct("<7i")

# The first tokens of every tokenizer: unknown, begin, end, and then the 256 bytes.
UNKNOWN, BEGIN, END, BYTES = 0, 1, 2, 3
NAMES = ("<unk>", "<s>", "</s>")
SPACE = "\u2581"  # what sentencepiece writes for one


@dataclass(frozen=True, slots=True)
class Sizes:
    """The header of a model file, in its order; a negative vocabulary has an own classifier."""

    dim: int
    hidden: int
    layers: int
    heads: int
    shared_heads: int
    vocabulary: int
    positions: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of what follows, in its order."""
        dim, layers = self.dim, self.layers
        shared = dim * self.shared_heads // self.heads
        yield "embedding", (abs(self.vocabulary), dim)
        yield "attention_norm", (layers, dim)
        yield "wq", (layers, dim, dim)
        yield "wk", (layers, shared, dim)
        yield "wv", (layers, shared, dim)
        yield "wo", (layers, dim, dim)
        yield "mlp_norm", (layers, dim)
        yield "w1", (layers, self.hidden, dim)
        yield "w2", (layers, dim, self.hidden)
        yield "w3", (layers, self.hidden, dim)
        yield "norm", (dim,)
        yield "angles", (self.positions, dim // self.heads)  # cosines and sines, which we compute
        if self.vocabulary < 0:
            yield "classifier", (abs(self.vocabulary), dim)


def convert(model: Path, tokenizer: Path, folder: Path) -> None:
    """Write a checkpoint of ``LlamaForCausalLM`` with its tokenizer.

    Args:
        model: In the first format of llama2.c (version 0, float32).
        tokenizer: Its tokenizer.
        folder: To write to.

    Raises:
        SourceError: If a file cannot be read or is not what it should be.
    """
    torch, transformers = need("torch"), need("transformers")
    sizes, weights = read_model(model)
    count = abs(sizes.vocabulary)
    tokens = read_tokens(tokenizer, count)
    config = transformers.LlamaConfig(
        vocab_size=count,
        hidden_size=sizes.dim,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.shared_heads,
        max_position_embeddings=sizes.positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=sizes.vocabulary > 0,
        bos_token_id=BEGIN,
        # Stories follow each other in the training data, with a begin between.
        eos_token_id=[BEGIN, END],
    )
    module = transformers.LlamaForCausalLM(config)
    state = {name: torch.from_numpy(array) for name, array in _named(sizes, weights)}
    module.load_state_dict(state, strict=False)
    module.save_pretrained(folder)
    made = tokenizer_of(tokens)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=sizes.positions,
        unk_token=NAMES[UNKNOWN],
        bos_token=NAMES[BEGIN],
        eos_token=NAMES[END],
    ).save_pretrained(folder)


def read_model(path: Path) -> tuple[Sizes, dict[str, np.ndarray]]:
    """Header and tensors of a model file.

    Raises:
        SourceError: If it is not as long as its header says.
    """
    data = _read(path)
    if len(data) < HEADER.size:
        raise SourceError(f"{path} has {len(data)} bytes, expected a header of {HEADER.size}")
    sizes = Sizes(*HEADER.unpack_from(data))
    positive = (sizes.dim, sizes.hidden, sizes.layers, sizes.heads, sizes.shared_heads)
    if min(*positive, sizes.positions, abs(sizes.vocabulary)) < 1 or sizes.dim % sizes.heads:
        raise SourceError(
            f"{path} is no model of llama2.c: its header says {sizes}",
            hint="Name a file that llama2.c's export wrote in version 0.",
        )
    shapes = dict(sizes.tensors())
    expected = HEADER.size + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(data) != expected:
        raise SourceError(f"{path} has {len(data)} bytes, expected {expected} by its header")
    weights, offset = {}, HEADER.size
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        weights[name] = np.frombuffer(data, "<f4", count, offset).reshape(shape).copy()
        offset += 4 * count
    return sizes, weights


def read_tokens(path: Path, count: int) -> list[tuple[str, float]]:
    """Text and score of each token.

    Raises:
        SourceError: If the file holds another number of tokens.
    """
    data = _read(path)
    tokens, offset = [], 4  # after the length of the longest
    try:
        for _ in range(count):
            score, size = struct.unpack_from("<fi", data, offset)
            offset += 8
            if size < 0 or offset + size > len(data):
                raise struct.error("a token ends after the file")
            tokens.append((data[offset : offset + size].decode("utf-8", "replace"), score))
            offset += size
    except struct.error as error:
        raise SourceError(
            f"{path} holds {len(tokens)} tokens, expected the model's {count}"
        ) from error
    if offset != len(data):
        raise SourceError(
            f"{path} goes on after {count} tokens, which the model has",
            hint="Name the tokenizer that belongs to the model.",
        )
    return tokens


def tokenizer_of(tokens: list[tuple[str, float]]) -> tokenizers.Tokenizer:
    """The same tokenizer for the library ``tokenizers``: byte pairs joined by score."""
    library = need("tokenizers")
    from tokenizers import decoders, models, normalizers, processors

    texts = [*NAMES, *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [text.replace(" ", SPACE) for text, _ in tokens[BYTES + 256 :]]
    ids = {text: index for index, text in enumerate(texts)}
    merges = []
    for index in range(BYTES + 256, len(texts)):
        text = texts[index]
        for cut in range(1, len(text)):
            if text[:cut] in ids and text[cut:] in ids:
                merges.append((-tokens[index][1], index, text[:cut], text[cut:]))
    made: tokenizers.Tokenizer = library.Tokenizer(
        models.BPE(
            ids,
            [(left, right) for *_, left, right in sorted(merges)],
            unk_token=NAMES[UNKNOWN],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.add_special_tokens(list(NAMES))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[(NAMES[BEGIN], BEGIN)]
    )
    return made


def _named(sizes: Sizes, weights: dict[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    yield "model.embed_tokens.weight", weights["embedding"]
    yield "lm_head.weight", weights.get("classifier", weights["embedding"])
    yield "model.norm.weight", weights["norm"]
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", weights["attention_norm"][layer]
        yield f"{prefix}.post_attention_layernorm.weight", weights["mlp_norm"][layer]
        for name, heads in (("q", sizes.heads), ("k", sizes.shared_heads)):
            turned = _halves(weights[f"w{name}"][layer], heads)
            yield f"{prefix}.self_attn.{name}_proj.weight", turned
        for name in ("v", "o"):
            yield f"{prefix}.self_attn.{name}_proj.weight", weights[f"w{name}"][layer]
        for name, key in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            yield f"{prefix}.mlp.{name}_proj.weight", weights[key][layer]


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from neighbours turned together to halves, as transformers turns them."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


@click.command
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("tokenizer", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def main(model: Path, tokenizer: Path, folder: Path) -> None:
    """Write MODEL and TOKENIZER, files of llama2.c, as a checkpoint to FOLDER."""
    try:
        convert(model, tokenizer, folder)
    except SourceError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

"""Tiny Marian and M2M checkpoints whose SentencePiece is trained when a test asks for it."""

import io
import json
import random
import warnings
from pathlib import Path

import sentencepiece
import transformers

from .checkpoints import write_checkpoint
from .pairs import BY_NAME

TEXTS = (
    "The ferry leaves the harbour at seven every morning.",
    "Die Fähre fährt jeden Morgen um sieben Uhr aus dem Hafen.",
    "Le bateau quitte le port à sept heures tous les matins.",
    "Паром отходит каждое утро в семь часов.",
    "每天早上七点渡轮离开港口。",
    "We waited an hour for cold soup and will not come again.",
    "Wir haben eine Stunde auf kalte Suppe gewartet.",
)
# Not in SentencePiece: what only the other side has, and a language to write in.
WRITTEN = ("\u2581nur", "\u2581geschrieben")
LANGUAGES = (">>deu<<", ">>fra<<")
# Of SentencePiece, not of the model.
UNKNOWN = 12


def write_pieces(path: Path, kind: str = "unigram", size: int = 220, **settings) -> list[str]:
    """Train a SentencePiece model; its pieces but the special ones, shuffled."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=written,
        vocab_size=size,
        model_type=kind,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    path.write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    found = [model.id_to_piece(index) for index in range(3, model.get_piece_size())]
    random.Random(0).shuffle(found)
    return found


def marian_tokenizer(folder: Path, kind: str = "unigram", **settings):
    """Marian's tokenizer, whose ids are its own and which does not know every piece."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = write_pieces(folder / "source.spm", kind, **settings)
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    tokens = ["</s>", "<unk>", *LANGUAGES, *pieces[:-UNKNOWN], *WRITTEN, "<pad>"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    with warnings.catch_warnings():  # it would like sacremoses, which it does not use
        warnings.simplefilter("ignore")
        return transformers.MarianTokenizer(
            str(folder / "source.spm"), str(folder / "target.spm"), str(vocabulary)
        )


def m2m_tokenizer(folder: Path, kind: str = "bpe", **settings):
    """M2M's tokenizer: a token for each of its hundred languages after those of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = write_pieces(folder / "sentencepiece.bpe.model", kind, **settings)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces[:-UNKNOWN]]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    return transformers.M2M100Tokenizer(str(vocabulary), str(folder / "sentencepiece.bpe.model"))


def _write(folder: Path, tokenizer, cls, config, **ids) -> Path:
    size = max(*tokenizer.get_vocab().values(), *getattr(tokenizer, "id_to_lang_token", {0: ""}))
    sizes = {"vocab_size": size + 1, "pad_token_id": tokenizer.pad_token_id, **ids}
    said = BY_NAME["BART"].sizes | sizes
    write_checkpoint(folder, cls, config(**said), tokenizer=False, std=0.3)
    tokenizer.save_pretrained(folder)
    return folder


def marian(folder: Path) -> Path:
    """A checkpoint of Marian that writes two languages."""
    tokenizer = marian_tokenizer(folder)
    start = {"decoder_start_token_id": tokenizer.pad_token_id, "eos_token_id": 0}
    return _write(folder, tokenizer, transformers.MarianMTModel, transformers.MarianConfig, **start)


def m2m(folder: Path) -> Path:
    """A checkpoint of M2M."""
    start = {"decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0}
    made = transformers.M2M100ForConditionalGeneration
    return _write(folder, m2m_tokenizer(folder), made, transformers.M2M100Config, **start)

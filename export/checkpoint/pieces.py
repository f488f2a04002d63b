"""SentencePiece with a vocabulary of the model's own (Marian, M2M), for ``tokenizers``."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfx.extras import need

if TYPE_CHECKING:
    import tokenizers

# Before a token that no text may become. U+FFFF stands for no character and never will.
UNREADABLE = "\uffff"

# Kinds of pieces and of models in a SentencePiece file (sentencepiece_model.proto).
NORMAL, USER_DEFINED, BYTE = 1, 4, 6
UNIGRAM, BPE = 1, 2

SPACE = "\u2581"

# What a conversion is tried with, beside texts of the vocabulary's own pieces.
TEXTS = (
    "",
    " ",
    "The ferry leaves at 7:30 a.m. -- don't be late!",
    "  Two  spaces, a tab\there,\u00a0and a line\nend.  ",
    "Größe, Straße und «Füße»: 1.234,56 €",
    "L'été, où est-ce qu'on va ? À l'œuvre…",
    "¿Dónde está el niño? ¡Mañana!",
    "Zażółć gęślą jaźń; příliš žluťoučký kůň",
    "Быстрая лиса перепрыгнула через забор.",
    "Γρήγορη αλεπού πηδά πάνω από τον φράχτη.",
    "השועל המהיר קפץ מעל הגדר",
    "الثعلب السريع يقفز فوق السياج",
    "तेज़ लोमड़ी बाड़ के ऊपर से कूदती है।",
    "สุนัขจิ้งจอกกระโดดข้ามรั้ว",
    "素早い狐は、垣根を飛び越えた。ﾊﾝｶｸ",
    "敏捷的狐狸跳过了栅栏。",
    "빠른 여우가 울타리를 뛰어넘었다.",
    "Con cáo nhanh nhẹn nhảy qua hàng rào",
    "½ ① ﬁne \uff21\uff22 e\u0301 🙂👩\u200d👧 \u200b",
)
RANDOM_TEXTS = 200


@dataclass(frozen=True, slots=True)
class Converted:
    """A tokenizer in another form.

    Attributes:
        tokenizer: What reads and writes texts.
        known: Tokens from this id on are pieces without an id of the model's: they are unknown
            to it; 0 where it knows all.
        unknown: The id that the model has for them.
    """

    tokenizer: tokenizers.Tokenizer
    known: int = 0
    unknown: int = 0


def is_convertible(tokenizer: Any) -> bool:
    """Whether it is one of those that ``convert`` knows: Marian's and M2M's."""
    return type(tokenizer).__name__ in ("MarianTokenizer", "M2M100Tokenizer")


def convert(slow: Any) -> Converted | str:
    """The same tokenizer for the library ``tokenizers``, or why there is none.

    Its vocabulary is that of the model, by id; a token that SentencePiece does not know can be
    written, and never be read. A piece that the model does not know comes after all of them.

    Args:
        slow: A tokenizer of transformers for which ``is_convertible``.
    """
    if getattr(slow, "separate_vocabs", False):
        return "it reads and writes with two vocabularies"
    spm = slow.spm_source if hasattr(slow, "spm_source") else slow.sp_model
    proto = need("sentencepiece.sentencepiece_model_pb2").ModelProto()
    proto.ParseFromString(spm.serialized_model_proto())
    kind = proto.trainer_spec.model_type
    if kind not in (UNIGRAM, BPE):
        return "its SentencePiece model is neither unigram nor BPE"
    if any(piece.type == USER_DEFINED for piece in proto.pieces):
        return "its SentencePiece model has symbols of its own"
    if (
        proto.trainer_spec.treat_whitespace_as_suffix
        or not proto.normalizer_spec.escape_whitespaces
    ):
        return "its SentencePiece model marks spaces in another way"
    special = {str(token): int(index) for index, token in slow.added_tokens_decoder.items()}
    special |= {str(token): int(index) for token, index in _languages(slow).items()}
    ids = {**slow.encoder, **special}
    read = {piece.piece: piece.score for piece in proto.pieces if piece.type in (NORMAL, BYTE)}
    size = max(ids.values()) + 1
    # (text, score) by id; a score only matters to what can be read.
    table = [(f"{UNREADABLE}{index}", 0.0) for index in range(size)]
    for token, index in ids.items():
        readable = token in read or token in special
        table[index] = (token if readable else UNREADABLE + token, read.get(token, 0.0))
    table += [(piece, score) for piece, score in read.items() if piece not in ids]
    unknown = ids[str(slow.unk_token)]
    made = _tokenizer(proto, table, unknown, read)
    made.add_special_tokens(_added(slow, special))
    _set_ends(made, slow)
    converted = Converted(made, size, unknown)
    return _difference(converted, slow, list(read)) or converted


def _languages(slow: Any) -> dict[str, int]:
    """Tokens of languages, which are not among the added tokens."""
    codes = getattr(slow, "supported_language_codes", [])
    found = {code: slow.encoder[code] for code in codes}  # Marian's
    return found | dict(getattr(slow, "lang_token_to_id", {}))  # M2M's


def _tokenizer(
    proto: Any, table: list[tuple[str, float]], unknown: int, read: dict[str, float]
) -> tokenizers.Tokenizer:
    library = need("tokenizers")
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    spec = proto.normalizer_spec
    fallback = proto.trainer_spec.byte_fallback
    model: models.Model
    if proto.trainer_spec.model_type == UNIGRAM:
        model = models.Unigram(table, unk_id=unknown, byte_fallback=fallback)
    else:
        vocabulary = {token: index for index, (token, _) in enumerate(table)}
        model = models.BPE(
            vocabulary,
            _merges(read),
            unk_token=table[unknown][0],
            fuse_unk=True,
            byte_fallback=fallback,
        )
    made: tokenizers.Tokenizer = library.Tokenizer(model)
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="always" if spec.add_dummy_prefix else "never",
        split=proto.trainer_spec.split_by_whitespace,
    )
    bytes_too = [decoders.ByteFallback()] if fallback else []
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(UNREADABLE, ""),
            *bytes_too,
            decoders.Replace(SPACE, " "),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


def _merges(read: dict[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces that become one, the best first: a piece's score is its rank."""
    ranked = sorted(read, key=lambda piece: -read[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in read and piece[cut:] in read
    ]


def _added(slow: Any, special: dict[str, int]) -> list[Any]:
    """Tokens that are found in a text before anything else, as the slow tokenizer finds them."""
    from tokenizers import AddedToken

    flags = {str(token): token for token in slow.added_tokens_decoder.values()}
    found = []
    for token in sorted(special, key=lambda token: special[token]):
        like = flags.get(token)
        found.append(
            AddedToken(
                token,
                lstrip=bool(like is not None and like.lstrip),
                rstrip=bool(like is not None and like.rstrip),
                normalized=False,
                special=True,
            )
        )
    return found


def _set_ends(made: tokenizers.Tokenizer, slow: Any) -> None:
    """The tokens that are put before and after each text."""
    from tokenizers import processors

    ids = slow("").input_ids
    tokens = [slow.convert_ids_to_tokens(index) for index in ids]
    before, after = tokens[:-1], tokens[-1:]
    made.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=list(zip(tokens, ids, strict=True)),
    )


def _difference(converted: Converted, slow: Any, pieces: list[str]) -> str:
    """What the two make of texts otherwise, or ""."""
    languages = _languages(slow)
    # Marian only looks for a language before a text.
    led = [f"{code} {TEXTS[2]}" for code in languages if not hasattr(slow, "lang_token_to_id")]
    for text in (*TEXTS, *led, *_random_texts(pieces)):
        expected = slow(text).input_ids
        found = converted.tokenizer.encode(text).ids
        found = [index if index < converted.known else converted.unknown for index in found]
        if found != expected:
            return f"{text!r} becomes tokens {found}, expected {expected}"
        # A language is none of the text, which transformers does not always know.
        words = [index for index in expected if index not in languages.values()]
        again = slow.decode(words, skip_special_tokens=True)
        written = converted.tokenizer.decode(words)
        if written.strip() != again.strip():
            return f"tokens {expected} become {written!r}, expected {again!r}"
    return ""


def _random_texts(pieces: list[str]) -> Iterator[str]:
    draw = random.Random(0)
    letters = sorted({letter for piece in pieces for letter in piece} - {SPACE})
    for _ in range(RANDOM_TEXTS):
        yield "".join(draw.choices(pieces, k=draw.randint(1, 30))).replace(SPACE, " ")
        yield "".join(draw.choices([*letters, " "], k=draw.randint(1, 30)))

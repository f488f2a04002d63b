"""llama2.c's files as checkpoints: against its arithmetic and its tokenizer, written again here."""

import itertools
import struct

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from tfx.errors import SourceError
from tfx.export.llama2c import HEADER, Sizes, convert, main, read_model, read_tokens, tokenizer_of

SIZES = Sizes(dim=16, hidden=24, layers=2, heads=4, shared_heads=2, vocabulary=268, positions=32)
PIECES = [" ", "a", "b", "c", " a", "ab", " ab", "abc", " abc"]  # ids from 259
SCORES = [-9.0, -9.0, -9.0, -9.0, -4.0, -1.0, -2.0, -5.0, -3.0]


def write_tokens(path, pieces=PIECES):
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    data = struct.pack("<i", 8)
    for text, score in zip([*texts, *pieces], [0.0] * len(texts) + SCORES, strict=False):
        data += struct.pack("<fi", score, len(text.encode())) + text.encode()
    path.write_bytes(data)


@pytest.fixture
def files(tmp_path, rng):
    weights = {
        name: rng.normal(scale=0.3, size=shape).astype("<f4") for name, shape in SIZES.tensors()
    }
    numbers = (getattr(SIZES, name) for name in Sizes.__slots__)
    data = HEADER.pack(*numbers) + b"".join(array.tobytes() for array in weights.values())
    (tmp_path / "model.bin").write_bytes(data)
    write_tokens(tmp_path / "tokens.bin")
    return tmp_path, weights


def normed(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x):
    """Neighbours of each head, turned by position: ``[tokens, heads, size]``."""
    tokens, _, size = x.shape
    angles = np.arange(tokens)[:, None] / 10000 ** (np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def logits_of(w, ids):
    """llama2.c's forward, for all tokens at once."""
    x = w["embedding"][ids]
    count, heads, size = len(ids), SIZES.heads, SIZES.dim // SIZES.heads
    for n in range(SIZES.layers):
        h = normed(x, w["attention_norm"][n])
        q = turned((h @ w["wq"][n].T).reshape(count, heads, size))
        k = turned((h @ w["wk"][n].T).reshape(count, -1, size)).repeat(2, axis=1)
        v = (h @ w["wv"][n].T).reshape(count, -1, size).repeat(2, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
        scores = np.exp(np.where(np.tri(count), scores, -np.inf))
        shares = scores / scores.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", shares, v).reshape(count, -1) @ w["wo"][n].T
        h = normed(x, w["mlp_norm"][n])
        gate = h @ w["w1"][n].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][n].T)) @ w["w2"][n].T
    return normed(x, w["norm"]) @ w["embedding"].T


def test_same_logits(files):
    folder, weights = files
    convert(folder / "model.bin", folder / "tokens.bin", folder / "made")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "made").eval()
    ids = np.array([1, 262, 5, 259, 260, 7])
    with torch.no_grad():
        found = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(found, logits_of(weights, ids), rtol=1e-4, atol=1e-4)


def encoded(text):
    """llama2.c's encode: letters or bytes, then again and again the best two neighbours joined."""
    ids = {piece: 259 + index for index, piece in enumerate(PIECES)}
    pieces = []
    for letter in " " + text:
        pieces += [letter] if letter in ids else [bytes([byte]) for byte in letter.encode()]
    while True:
        pairs = [
            (SCORES[ids[left + right] - 259], -place)
            for place, (left, right) in enumerate(itertools.pairwise(pieces))
            if isinstance(left, str) and isinstance(right, str) and left + right in ids
        ]
        if not pairs:
            return [1, *(ids[p] if isinstance(p, str) else p[0] + 3 for p in pieces)]
        place = -max(pairs)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


@pytest.mark.parametrize("text", ["abc", "a b c", "cab abc", "aé b", "bb\nab"])
def test_same_tokens(files, text):
    tokenizer = tokenizer_of(read_tokens(files[0] / "tokens.bin", 268))
    ids = tokenizer.encode(text).ids
    assert ids == encoded(text)
    assert tokenizer.decode(ids) == text


def test_own_classifier(files):
    folder, _ = files
    data = bytearray((folder / "model.bin").read_bytes())
    struct.pack_into("<i", data, 20, -268)
    classifier = np.ones((268, 16), "<f4")
    (folder / "model.bin").write_bytes(bytes(data) + classifier.tobytes())
    sizes, weights = read_model(folder / "model.bin")
    assert sizes.vocabulary == -268
    np.testing.assert_array_equal(weights["classifier"], classifier)


def test_what_is_no_model(files):
    folder, _ = files
    model = folder / "model.bin"
    data = model.read_bytes()
    for content, message in (
        (b"abc", "has 3 bytes, expected a header of 28"),
        (data[:-4], "bytes, expected"),
        (bytes(28), "is no model of llama2.c: its header says"),
    ):
        model.write_bytes(content)
        with pytest.raises(SourceError, match=message):
            read_model(model)
    with pytest.raises(SourceError, match="cannot read"):
        read_model(folder / "nowhere")


def test_what_is_no_tokenizer(files):
    path = files[0] / "tokens.bin"
    with pytest.raises(SourceError, match="holds 268 tokens, expected the model's 300"):
        read_tokens(path, 300)
    with pytest.raises(SourceError, match="goes on after 260 tokens"):
        read_tokens(path, 260)


def test_command(files):
    folder, _ = files
    arguments = [str(folder / name) for name in ("model.bin", "tokens.bin", "made")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert (folder / "made" / "model.safetensors").is_file()
    refused = CliRunner().invoke(main, [str(folder / "nowhere"), *arguments[1:]])
    assert refused.exit_code == 1
    assert "cannot read" in refused.output

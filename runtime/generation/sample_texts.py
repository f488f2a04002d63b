"""Real words to measure with: random tokens are like nothing a model was trained on."""

from __future__ import annotations

import numpy as np

from tfx.bundle import Bundle

from .continuations import Writer

# Random tokens also say little of what 8 bits cost.
TEXTS = (
    "The ferry leaves the harbour at seven every morning and reaches the island before nine, so "
    "that most of the people who work in the town can still catch the first bus up the hill.",
    "When the committee published its report, three of the four recommendations had already been "
    "carried out, and the fourth was waiting for money from the ministry.",
    "She liked the novel less than the film: its middle part is slow, but the last forty pages "
    "are as good as anything written that year.",
    "Interest rates rose by a quarter of a point on Tuesday, and shares of banks gained while "
    "those of builders fell.",
    "To change the filter, turn the machine off, open the lid, pull the old filter out by its "
    "handle and rinse the holder with cold water.",
    "Scientists found that the frogs call at a higher pitch near roads; females, who prefer low "
    "voices, came less often.",
    "The service was friendly, but we waited an hour for cold soup and will not come again.",
    "Does anybody know whether the museum is open on public holidays?",
)


def sample_ids(bundle: Bundle, batch: int, length: int, seed: int) -> np.ndarray:
    """Texts as tokens, ``int64[batch, length]``: repeated where they are too short.

    Args:
        bundle: With a cache; without a tokenizer its tokens are random.
        batch: Rows.
        length: Tokens of each.
        seed: Of which text each row begins with.
    """
    if bundle.manifest.processing.tokenization is None:
        inputs = bundle.manifest.signature.inputs
        (tokens,) = (spec for spec in inputs if spec.name == "input_ids")
        most = tokens.values.max if tokens.values else 1
        rng = np.random.default_rng(seed)
        return rng.integers(0, most, (batch, length), endpoint=True, dtype=np.int64)
    first = seed % len(TEXTS)
    words = [" ".join(TEXTS[(first + row) % len(TEXTS) :] + TEXTS) for row in range(batch)]
    tokenizer = Writer(bundle).tokenizer
    rows = [np.resize(tokenizer.encode(text).ids, length) for text in words]
    return np.stack(rows).astype(np.int64)

"""Connectionist temporal classification: a token for each frame to text (Graves et al. 2006)."""

from __future__ import annotations

import itertools

import numpy as np

from tfx.processing import Transcription


def spoken(ids: np.ndarray, said: Transcription) -> str:
    """The text of the tokens of all frames: repeated ones are one, and blanks are none.

    Args:
        ids: The likeliest token of each frame, ``int64[frames]``.
        said: What they stand for.
    """
    # By their text: ids that the vocabulary does not know are all the same token.
    tokens = (token for token, _ in itertools.groupby(said.tokens[index] for index in ids))
    blank, delimiter = said.tokens[said.blank], said.delimiter
    words = (
        "" if one == blank else " " if delimiter and one == delimiter else one for one in tokens
    )
    text = "".join(words).strip()
    return text.lower() if said.lower else text

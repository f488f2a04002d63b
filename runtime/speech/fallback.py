"""What is done about a text that went wrong: it is drawn again at a higher temperature."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tfx.errors import FeedError, listing


@dataclass(frozen=True, slots=True)
class Fallback:
    """When a window's text is taken for wrong, and what is tried then (Radford et al. 2022, 4.5).

    The numbers are those of transformers' long-form Whisper, whose ratio is of tokens; that of
    the paper, 2.4, is of text.

    Attributes:
        temperatures: Tried in this order, until a text is good; the last one is kept. At 0 the
            likeliest token is taken each time.
        compression_ratio: A text whose tokens zlib makes shorter than this repeats itself.
        log_probability: Least mean of the logarithm of the tokens' probabilities.
        seed: Of what is drawn.

    Raises:
        FeedError: If no temperature is given, one is below 0 or no number, a threshold is NaN,
            or the seed is below 0.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 1.35
    log_probability: float = -1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not self.temperatures or not all(0 <= one < math.inf for one in self.temperatures):
            problems.append(
                f"temperatures are {list(self.temperatures)}, expected one or more of 0 or above"
            )
        for name in ("compression_ratio", "log_probability"):
            if math.isnan(getattr(self, name)):
                problems.append(f"{name} is nan, expected a number")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}, expected 0 or more")
        if problems:
            raise FeedError(
                listing("a text cannot be tried again like this:", problems),
                hint="Leave out what is to be as transformers has it.",
            )

    def refuses(self, tokens: Sequence[int], vocabulary: int, log_probability: float) -> bool:
        """Whether a text is to be tried again.

        Args:
            tokens: Of it, the end included.
            vocabulary: How many tokens there are.
            log_probability: Their mean.
        """
        repeats = compression_ratio(tokens, vocabulary) > self.compression_ratio
        return repeats or log_probability < self.log_probability


def compression_ratio(tokens: Sequence[int], vocabulary: int) -> float:
    """How much shorter zlib makes tokens, each of as many bytes as the vocabulary needs."""
    width = int(math.log2(vocabulary) / 8) + 1
    written = b"".join(token.to_bytes(width, "little") for token in tokens)
    return len(written) / len(zlib.compress(written))

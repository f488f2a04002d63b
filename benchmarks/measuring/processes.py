"""Rows in several processes: what is sure of a ratio of two rows when other work disturbs them.

What else runs on a machine only ever adds time. So where two runs are compared, a row counts with
the lower quartile, over the rounds of a process, of the fastest call of each: the machine's worst
rounds do not move it, as they move a median. Of each process stands one number, the logarithm of
the row's time over the other row's in the same rounds; of several their mean.

How fast a model is also depends on its process. The bootstrap draws processes, and not their rounds
again: the processes' numbers vary with them already (Davison & Hinkley 1997, section 3.8). Few
processes also tell too little of how far they spread, so what is drawn is widened as Student's t
is against the normal distribution (Hesterberg 2015, "What teachers should know about the
bootstrap"). From one process nothing is known of others: there its rounds are drawn, and the
interval is too narrow for what another process would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfx.runtime.bootstrap import RESAMPLES, draw, percentile_interval
from tfx.runtime.stats import LEAST_ROUNDS, Comparison, Verdict, compare_speed, judge

# 97.5 % quantiles of Student's t by 1 / degrees of freedom; the first is the normal one's.
T_STEPS = (0.0, 1 / 30, 1 / 10, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0)
T_97_5 = (1.960, 2.042, 2.228, 2.571, 2.776, 3.182, 4.303, 12.706)


# Of a process' rounds: what is below is as often luck, what is above other work.
QUARTILE = 0.25


@dataclass(frozen=True, slots=True)
class Side:
    """Times of a row and of what it is compared with, by process.

    Attributes:
        processes: Of each, the row's and the other's times: ``[2, rounds]``, with a round at least.
        quantile: Of a process' rounds, that a row counts with.
    """

    processes: tuple[np.ndarray, ...]
    quantile: float = QUARTILE

    @property
    def rounds(self) -> int:
        """Of all processes."""
        return sum(one.shape[1] for one in self.processes)

    @property
    def logs(self) -> np.ndarray:
        """Of each process the logarithm of its ratio: ``[processes]``."""
        return np.array([self.log_ratio(one) for one in self.processes])

    @property
    def centre(self) -> float:
        """The mean of the processes."""
        return float(self.logs.mean())

    @property
    def apart(self) -> np.ndarray:
        """How far each process is from the mean of all that there could be: ``[processes]``.

        Those of a sample are nearer to its own mean, hence the factor.
        """
        count = len(self.processes)
        logs = self.logs
        widened: np.ndarray = (logs - logs.mean()) * (count / max(count - 1, 1)) ** 0.5
        return widened

    def log_ratio(self, times: np.ndarray) -> np.ndarray:
        """Of ``[2, ..., rounds]``, over the last axis."""
        row, other = np.log(np.quantile(times, self.quantile, axis=-1))
        found: np.ndarray = row - other
        return found


def side_of(
    row: Sequence[float],
    other: Sequence[float],
    process_rounds: Sequence[int],
    quantile: float = QUARTILE,
) -> Side:
    """What a row's rounds say against another's; one may have more processes.

    Args:
        row: A time of each round.
        other: Of the same rounds.
        process_rounds: Rounds of each process of the row.
        quantile: As in ``Side``.
    """
    count = min(len(row), len(other))
    both = np.array([row[:count], other[:count]], np.float64)
    parts = np.split(both, np.cumsum(process_rounds)[:-1], axis=1)
    return Side(tuple(part for part in parts if part.shape[1]), quantile)


def joined(sides: Sequence[Side]) -> Side:
    """The processes of several runs."""
    return Side(tuple(one for side in sides for one in side.processes))


def ratio_of(
    later: Side, earlier: Side | None, rng: np.random.Generator
) -> tuple[float, float, float]:
    """A ratio, later over earlier, or of ``later`` alone, with its 95 % interval.

    Where only one of both has several processes, those of the other are taken to spread alike.

    Args:
        later: Its numerator.
        earlier: What it is divided by; None for 1.
        rng: Draws the processes.

    Returns:
        Ratio, lower end, upper end.
    """
    sides = [later] if earlier is None else [later, earlier]
    centre = later.centre - (0.0 if earlier is None else earlier.centre)
    several = [side for side in sides if len(side.processes) > 1]
    if not several:
        moved = [_of_rounds(side, rng) for side in sides]
        factor = 1.0
    else:
        known = [side if len(side.processes) > 1 else several[0] for side in sides]
        moved = [_of_processes(*both, rng) for both in zip(sides, known, strict=True)]
        factor = _t_factor(sides, known)
    apart = moved[0] if earlier is None else moved[0] - moved[1]
    low, high = percentile_interval(apart * factor)
    return float(np.exp(centre)), float(np.exp(centre + low)), float(np.exp(centre + high))


def _of_rounds(side: Side, rng: np.random.Generator) -> np.ndarray:
    """How far the number of one process moves when its rounds are drawn: ``[RESAMPLES]``."""
    (times,) = side.processes
    drawn = times[:, draw(times.shape[1], rng)]
    found: np.ndarray = side.log_ratio(drawn) - side.log_ratio(times)
    return found


def _of_processes(side: Side, known: Side, rng: np.random.Generator) -> np.ndarray:
    """How far the mean of a side's processes moves when they are drawn: ``[RESAMPLES]``."""
    apart = known.apart
    drawn = rng.integers(0, len(apart), (RESAMPLES, len(side.processes)))
    found: np.ndarray = apart[drawn].mean(axis=1)
    return found


def _t_factor(sides: Sequence[Side], known: Sequence[Side]) -> float:
    """How much wider Student's t is than the normal, by Welch's degrees of freedom."""
    shares = [
        float(np.mean(one.apart**2)) / len(side.processes)
        for side, one in zip(sides, known, strict=True)
    ]
    parts = sum(
        share**2 / (len(one.processes) - 1) for share, one in zip(shares, known, strict=True)
    )
    per_degree = parts / sum(shares) ** 2 if any(shares) else 0.0
    return float(np.interp(per_degree, T_STEPS, T_97_5)) / T_97_5[0]


def compare_rows(
    rounds: Sequence[Sequence[int]],
    baseline: Sequence[Sequence[int]],
    process_rounds: Sequence[int],
    *,
    against: str,
    rng: np.random.Generator,
) -> Comparison:
    """Compare the medians of two rows measured in the same rounds of the same processes.

    Args:
        rounds: Nanoseconds per call of each round.
        baseline: The other row's; what only one of both has comes last, and is left out.
        process_rounds: Rounds of each process of the row.
        against: The other row's name.
        rng: Draws processes, or the rounds of one.
    """
    count = min(len(rounds), len(baseline))
    rounds, baseline = rounds[:count], baseline[:count]
    if len(process_rounds) < 2:
        return compare_speed(rounds, baseline, against=against, rng=rng)
    other, row = ([float(np.median(one)) for one in each] for each in (baseline, rounds))
    side = side_of(other, row, process_rounds, quantile=0.5)
    speedup, low, high = ratio_of(side, None, rng)
    verdict = judge(low, high) if len(rounds) >= LEAST_ROUNDS else Verdict.UNSURE
    return Comparison(against, speedup, low, high, verdict)

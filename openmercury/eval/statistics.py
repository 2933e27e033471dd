"""From verdicts to figures: pass@k, its intervals, and what the answers cost."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from openmercury.eval.tasks.base import Sample

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
RESAMPLES = 2000


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that one of k samples drawn from `samples` without putting back is among the `correct`.

    1 − C(n − c, k) / C(n, k), the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374).
    """
    assert 0 <= correct <= samples >= k >= 1
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), for single answers."""
    share, weight = correct / n, Z**2 / n
    middle = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over problems, by drawing problems again and again; the same for the same values."""
    drawn = random.Random(seed)
    means = sorted(fmean(drawn.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = int((1 - CONFIDENCE) / 2 * RESAMPLES)
    return means[cut], means[-1 - cut]


@dataclass(frozen=True)
class Score:
    """pass@k, and the interval it lies in with 95 %."""

    value: float
    low: float
    high: float


def scores(outcomes: Sequence[Sequence[bool]]) -> dict[int, Score]:
    """pass@k for k = 1 and every power of ten that each problem has samples for, and for as many as each has.

    `outcomes` holds, for each problem, what became of its samples; at least one problem, and one sample each.
    """
    fewest = min(map(len, outcomes))
    ks = sorted({1, fewest, *(10**power for power in range(1, 4) if 10**power <= fewest)})
    return {k: _score(outcomes, k) for k in ks}


def _score(outcomes: Sequence[Sequence[bool]], k: int) -> Score:
    values = [pass_at_k(len(one), sum(one), k) for one in outcomes]
    single = all(len(one) == 1 for one in outcomes)
    low, high = wilson(sum(map(sum, outcomes)), len(outcomes)) if single else bootstrap(values)
    return Score(fmean(values), low, high)


@dataclass(frozen=True)
class Cost:
    """What answers took; None where the system does not tell.

    `tpf` is all completion tokens ÷ all forwards, `tpf_mean` the mean over answers.
    """

    tokens: int | None
    forwards: int | None
    tpf: float | None
    tpf_mean: float | None


def cost(samples: Sequence[Sample]) -> Cost:
    """The cost of answers without errors. A system that writes text of 0 tokens does not tell how many they are."""
    told = all(sample.completion_tokens or not sample.answer for sample in samples)
    tokens = sum(sample.completion_tokens for sample in samples)
    forwards = [sample.forwards for sample in samples if sample.forwards is not None]
    if not told or not samples:
        return Cost(None, None, None, None)
    if len(forwards) < len(samples):
        return Cost(tokens, None, None, None)
    each = [sample.completion_tokens / max(1, sample.forwards or 0) for sample in samples]
    return Cost(tokens, sum(forwards), tokens / max(1, sum(forwards)), fmean(each))

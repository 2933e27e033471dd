"""`auto`: which shape its rows take in the coming forwards, and how many of them run before the host looks.

`ar` and every shape of `verified` give the same text, so the choice is one of speed alone and may change at any step:

    score = tokens a row gains in a forward (Acceptance) ÷ seconds of the forward (Costs)

Both are learned from what forwards report, of explicit modes too, from priors that were measured. Blocks of `diffusion`
are no candidates: where only the clean side's choices stand they gain less than drafts behind full acceptance ("last")
in as many positions, and where others may stand the text is another one; so there is no threshold to choose either.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openmercury.diffusion.sample import Sampling
from openmercury.engine.config import ROW_BUCKETS, EngineConfig, bucket
from openmercury.engine.modes import Shape
from openmercury.engine.widths import MISSED

DECIDE_EVERY = 16  # visits of the host to the device from one choice to the next
TRIAL_VISITS = 8  # forwards of "last" take turns in how much they verify
STAY = 1.01  # how much better another shape must be
OPTIMISM = 1.1  # a shape without times here may be this much better than predicted
FORGET_VISITS = 4096  # after as many, a time not measured again is a prediction again
VISIT_SECONDS, MOST_STEPS, FULL_ROWS = 0.004, 8, 16


class CostPrior(NamedTuple):
    """Seconds of a forward before anything is measured, and what the first forwards of a shape cost beyond their own.

    Only ratios matter: the first measurement sets the scale.
    """

    base: float
    row: float
    position: float
    trial: float


# docs/log.md: the nano in bfloat16 on 2 cores and on one H100, where a trial captures a graph.
PRIORS = {"cpu": CostPrior(45e-3, 2e-3, 3.3e-3, 0.05), "cuda": CostPrior(1.3e-3, 10e-6, 3e-6, 0.3)}


class Load(NamedTuple):
    """What a time belongs to besides the shape: rows, rounded up to a bucket, and what choosing tokens needs."""

    rows: int
    sampling: Sampling

    @classmethod
    def of(cls, rows: int, sampling: Sampling) -> Load:
        """The load of so many rows."""
        return cls(bucket(rows, ROW_BUCKETS), sampling)


class Report(NamedTuple):
    """What `steps` forwards gave: seconds of all (None: not measured), tokens, and forwards summed over live rows."""

    steps: int
    seconds: float | None
    tokens: int
    forwards: int


# --- tokens per forward ----------------------------------------------------------------------------------------------


def expected_tokens(shape: Shape, p: float) -> float:
    """Tokens a row gains per forward where a draft behind accepted ones is accepted with probability p.

    Of g drafts A are accepted, E A = Σ_{j=1‥g} p^j, and one exact token follows. "all": 1 + E A. With "last" a forward
    that does not accept all g (probability 1 − p^g) leaves no drafts, and the next one gains a single token while it
    drafts anew. Each forward that has drafts begins a cycle: of (1 + E A) + (1 − p^g) tokens in 1 + (1 − p^g) forwards.
    With groups behind likely lengths only a share of them (`widths.MISSED`) leaves no drafts.
    """
    if shape.mode != "verified":
        return 1.0
    accepted = sum(p**j for j in range(1, shape.width + 1))
    if shape.groups == "all":
        return 1 + accepted
    anew = MISSED[shape.group_count - 1] * (1 - p**shape.width)
    return (1 + accepted + anew) / (1 + anew)


class Acceptance:
    """How well the text now being written can be drafted.

    Text has stretches easy and hard to draft, so that full acceptance follows full acceptance: with one p for all of it
    "last" would come out an eighth too low. Reports hold sums over rows and forwards, from which one number can be
    learned, the share w of tokens in easy stretches: forwards per token are w ÷ easy + (1 − w) ÷ hard. With p as below
    HumanEval's TPF comes out as 5.46 (7 "all"), 3.40 (3 "all") and 3.85 (5 "last"); measured were 5.37, 3.48 and 3.91
    with the second adapter. The third gains more there (7 "all": 6.25; 13 and 4 groups: 7.69, where this says 6.65).

    What is left is a factor of each shape. Share and logarithms of factors are the state of a Kalman filter: the share
    may be anything and drifts, back to the prior where nothing is seen of it; factors are near 1 and stay.
    """

    EASY, HARD, SHARE = 0.98, 0.6, 0.82
    SHARE_SPREAD, FACTOR_SPREAD = 0.25, 0.06  # standard deviations of the state without evidence
    SHARE_LASTS, FACTOR_LASTS = 16384, 65536  # forwards until a deviation has lost all but 1/e
    # Standard deviation of what one row gains in one forward ÷ its mean: 0.6 alone, but a stretch lasts many forwards,
    # and the share of all text is wanted, not that of the stretches rows are in.
    GAIN_SPREAD = 2.0

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.drafted = [shape for shape in shapes if shape.mode == "verified"]
        others = len(self.drafted)
        self.prior = np.array([self.SHARE] + [0.0] * others)
        self.decay = np.array([1 / self.SHARE_LASTS] + [1 / self.FACTOR_LASTS] * others)
        self.widest = np.diag([self.SHARE_SPREAD**2] + [self.FACTOR_SPREAD**2] * others)
        self.state, self.covariance = self.prior, self.widest

    @property
    def share(self) -> float:
        """Share of tokens in easy stretches."""
        return min(1.0, max(0.0, float(self.state[0])))

    def tokens(self, shape: Shape) -> float:
        """Tokens a row gains per forward; of a shape that drafts, one of those given."""
        if shape.mode != "verified":
            return expected_tokens(shape, self.EASY)
        easy, hard = (expected_tokens(shape, p) for p in (self.EASY, self.HARD))
        factor = math.exp(self.state[1 + self.drafted.index(shape)])
        return factor / (self.share / easy + (1 - self.share) / hard)

    def observe(self, shape: Shape, report: Report) -> None:
        """Learn from forwards. Those of `ar` and of other shapes say nothing but make what was known older."""
        kept = np.exp(-report.steps * self.decay)
        self.state = self.prior + kept * (self.state - self.prior)
        self.covariance = np.outer(kept, kept) * self.covariance + self.widest * (1 - kept**2)
        if shape not in self.drafted or not report.forwards:
            return
        index, each = 1 + self.drafted.index(shape), self.tokens(shape)
        easy, hard = (expected_tokens(shape, p) for p in (self.EASY, self.HARD))
        gradient = np.zeros_like(self.state)
        gradient[0] = each**2 * math.exp(-self.state[index]) * (1 / hard - 1 / easy)
        gradient[index] = each
        gradient *= report.forwards
        moved = self.covariance @ gradient
        gain = moved / (gradient @ moved + report.forwards * (self.GAIN_SPREAD * each) ** 2)
        self.state = self.state + gain * (report.tokens - report.forwards * each)
        self.covariance = self.covariance - np.outer(gain, moved)


# --- seconds of a forward --------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Running mean of a forward's seconds. What is far off was another program's doing, so it counts as `FAR` off."""

    FAR: ClassVar[float] = 1.5

    seconds: float
    count: int
    visit: int

    def add(self, seconds: float, visit: int) -> None:
        """Take one more."""
        self.count, self.visit = self.count + 1, visit
        if self.count == 2:  # the first forward of a shape also sets things up
            self.seconds = min(self.seconds, seconds)
        else:
            clipped = min(max(seconds, self.seconds / self.FAR), self.FAR * self.seconds)
            self.seconds += max(1 / self.count, 0.05) * (clipped - self.seconds)


class Costs:
    """Seconds of a forward: as measured, else predicted by base + row · rows + position · positions fitted to those."""

    def __init__(self, prior: CostPrior) -> None:
        self.prior = np.array(prior[:3])
        self.timings: dict[tuple[Load, Shape], Timing] = {}
        self.visits = 0
        self.spent: defaultdict[Load, float] = defaultdict(float)  # seconds under each load

    def observe(self, load: Load, shape: Shape, report: Report) -> None:
        """Take the time of one visit."""
        self.visits += 1
        if report.seconds is None:
            return
        self.spent[load] += report.seconds
        each = report.seconds / report.steps
        if (load, shape) in self.timings:
            self.timings[load, shape].add(each, self.visits)
        else:
            self.timings[load, shape] = Timing(each, 1, self.visits)

    def measured(self, load: Load, shape: Shape) -> bool:
        """Is there a time that still counts?"""
        timing = self.timings.get((load, shape))
        return timing is not None and self.visits - timing.visit < FORGET_VISITS

    def seconds(self, load: Load, shapes: Sequence[Shape]) -> list[float]:
        """Seconds of one forward of each shape."""
        weights = None if all(self.measured(load, shape) for shape in shapes) else self._fit(load.sampling)
        return [
            self.timings[load, shape].seconds
            if weights is None or self.measured(load, shape)
            else float(_features(load, shape) @ weights)
            for shape in shapes
        ]

    def _fit(self, sampling: Sampling) -> NDArray[np.float64]:
        """Least squares of relative errors, drawn to the prior's proportions; other samplings' times serve at first."""
        own = [(key, timing.seconds) for key, timing in self.timings.items() if key[0].sampling == sampling]
        points = own or [(key, timing.seconds) for key, timing in self.timings.items()]
        if not points:
            return self.prior
        features = np.array([_features(*key) for key, _ in points])
        seconds = np.array([each for _, each in points])
        prior = self.prior * median(seconds / (features @ self.prior))
        pull = 0.1
        rows = np.concatenate((features / seconds[:, None], np.diag(pull / prior)))
        weights: NDArray[np.float64] = np.linalg.lstsq(rows, np.array([1.0] * len(points) + [pull] * 3), rcond=None)[0]
        return weights.clip(0.05 * prior)


def _features(load: Load, shape: Shape) -> NDArray[np.float64]:
    return np.array([1.0, load.rows, load.rows * shape.positions])


# --- the choice ------------------------------------------------------------------------------------------------------


@dataclass
class Choice:
    """The shape in use under one load, and for how many visits still."""

    shape: Shape
    left: int


class AutoPolicy:
    """Chooses among `shapes`, separately for each load, anew every `DECIDE_EVERY` visits.

    A shape never measured under a load is tried once the time spent there, times what it may gain, has outgrown the
    price of trying (as one rents skis until buying would have paid): a handful of visits, and on CUDA the capture of a
    graph. A trial leaves a time, so none is tried twice in vain; among measured shapes the best is used, and left only
    for one clearly better.
    """

    def __init__(self, shapes: Sequence[Shape], device: Literal["cpu", "cuda"], steps: int | Literal["auto"]) -> None:
        self.shapes, self.fixed_steps, self.trial_seconds = tuple(shapes), steps, PRIORS[device].trial
        self.acceptance, self.costs = Acceptance(shapes), Costs(PRIORS[device])
        self.choices: dict[Load, Choice] = {}
        self.spacing: dict[tuple[Load, Shape], int] = {}

    @classmethod
    def of(cls, config: EngineConfig, device: Literal["cpu", "cuda"], *, drafts: bool) -> AutoPolicy:
        """The candidates of the settings; without an adapter for `drafts` there is `ar` alone."""
        wide = [Shape("verified", width, groups) for width, groups in config.auto_drafts] if drafts else []
        return cls([Shape("ar", 1), *wide], device, config.steps_per_sync)

    def shape(self, rows: int, sampling: Sampling) -> Shape:
        """What `rows` rows of `auto` do next."""
        load = Load.of(rows, sampling)
        if load not in self.choices or not self.choices[load].left:
            self.choices[load] = self._choose(load)
        choice = self.choices[load]
        choice.left -= 1
        return choice.shape

    def steps(self, shape: Shape, rows: int, sampling: Sampling) -> int:
        """Forwards before the host looks: with many rows enough to hide the host's own time, else one.

        Once chosen the number stays, since on CUDA each is a graph of its own.
        """
        if self.fixed_steps != "auto":
            return self.fixed_steps
        if rows < FULL_ROWS or not self.costs.timings:
            return 1
        load = Load.of(rows, sampling)
        if (load, shape) not in self.spacing:
            seconds = self.costs.seconds(load, [shape])[0]
            self.spacing[load, shape] = min(MOST_STEPS, math.ceil(VISIT_SECONDS / seconds))
        return self.spacing[load, shape]

    def observe(self, shape: Shape, rows: int, sampling: Sampling, report: Report) -> None:
        """Learn from forwards that were read."""
        self.acceptance.observe(shape, report)
        self.costs.observe(Load.of(rows, sampling), shape, report)

    def _choose(self, load: Load) -> Choice:
        seconds = self.costs.seconds(load, self.shapes)
        score = {shape: self.acceptance.tokens(shape) / each for shape, each in zip(self.shapes, seconds, strict=True)}
        known = [shape for shape in self.shapes if self.costs.measured(load, shape)]
        best = max(known or self.shapes, key=score.__getitem__)
        if load in self.choices and self.choices[load].shape in known:
            current = self.choices[load].shape
            best = best if score[best] > STAY * score[current] else current
        unknown = [shape for shape in self.shapes if shape not in known] if known else []
        if unknown:
            other = max(unknown, key=score.__getitem__)
            gain = OPTIMISM * score[other] / score[best] - 1
            if gain * self.costs.spent[load] > self.trial_seconds:
                return Choice(other, TRIAL_VISITS)
        return Choice(best, DECIDE_EVERY)

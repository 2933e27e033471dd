"""Strengths of contestants from votes between pairs of them: P(i beats j) = 1 / (1 + e^(θⱼ − θᵢ)) (Bradley–Terry 1952).

A tie is half a win for either. Each pair that has met gets half a win more each way (Jeffreys' prior for a share): with
it a contestant that never lost has a finite strength, and an interval. Intervals come from the Bayesian bootstrap
(Rubin 1981): every vote gets a random weight from Gamma(1), every half win of the prior one from Gamma(½), and the
strengths are fitted again. The ordinary bootstrap would find no spread at all in ten wins out of ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR = 0.5  # wins each way
RESAMPLES = 1000
SEED = 2502
TAIL = 2.5  # per cent outside the interval on either side
PER_UNIT = 400 / math.log(10)  # Elo's scale: ten times the odds is 400 points
MEAN = 1000.0
STEP, TOLERANCE, ROUNDS = 2.0, 1e-6, 500  # of Newton's method


@dataclass(frozen=True)
class Duel:
    """One vote between two contestants; `winner` is None for a tie."""

    left: str
    right: str
    winner: str | None


@dataclass(frozen=True)
class Rating:
    """Strength on Elo's scale (the mean of a group is 1000), with its 95 % interval."""

    name: str
    score: float
    low: float
    high: float


def rate(duels: Sequence[Duel], *, resamples: int = RESAMPLES, seed: int = SEED) -> list[list[Rating]]:
    """Ratings, strongest first, of each group of contestants that votes connect; between groups nothing is known."""
    generator = np.random.default_rng(seed)
    return [_rate_group(names, duels, resamples, generator) for names in groups(duels)]


def groups(duels: Sequence[Duel]) -> list[list[str]]:
    """The contestants, apart where no chain of votes leads from one to the other; sorted by name."""
    of: dict[str, set[str]] = {}
    for duel in duels:
        joined = of.get(duel.left, {duel.left}) | of.get(duel.right, {duel.right})
        of.update(dict.fromkeys(joined, joined))
    return sorted({min(group): sorted(group) for group in of.values()}.values())


def _rate_group(
    names: Sequence[str], duels: Sequence[Duel], resamples: int, generator: np.random.Generator
) -> list[Rating]:
    wins_NN, ties_NN = _counts(names, duels)
    met_NN = PRIOR * ((wins_NN + wins_NN.T + ties_NN) > 0)
    theta_N = fit(wins_NN + ties_NN / 2 + met_NN)
    shape = (resamples, *wins_NN.shape)
    drawn_RNN = np.triu(generator.standard_gamma(np.broadcast_to(ties_NN, shape)))
    share_RNN = generator.standard_gamma(np.broadcast_to(wins_NN + met_NN, shape))
    thetas_RN = fit(share_RNN + (drawn_RNN + drawn_RNN.swapaxes(1, 2)) / 2)
    low_N, high_N = np.percentile(thetas_RN, [TAIL, 100 - TAIL], axis=0)
    rows = zip(names, *(PER_UNIT * values + MEAN for values in (theta_N, low_N, high_N)), strict=True)
    return sorted((Rating(name, *map(float, row)) for name, *row in rows), key=lambda one: (-one.score, one.name))


def _counts(names: Sequence[str], duels: Sequence[Duel]) -> tuple[Floats, Floats]:
    """wins[i, j]: votes for i against j; ties[i, j] = ties[j, i]."""
    index = {name: number for number, name in enumerate(names)}
    wins_NN, ties_NN = np.zeros((2, len(names), len(names)))
    for duel in duels:
        if duel.left not in index:
            continue
        left, right = index[duel.left], index[duel.right]
        if duel.winner is None:
            ties_NN[left, right] += 1
            ties_NN[right, left] += 1
        else:
            won = index[duel.winner]
            wins_NN[won, left + right - won] += 1
    return wins_NN, ties_NN


def fit(wins: Floats) -> Floats:
    """Maximum likelihood θ of mean 0 from `wins[…, i, j]`, i's against j, by Newton's method; every pair that is not 0
    is positive both ways, and they connect all contestants."""
    size = wins.shape[-1]
    games = wins + wins.swapaxes(-1, -2)
    theta: Floats = np.zeros(wins.sum(-1).shape)
    for _ in range(ROUNDS):
        expected = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))
        other = expected.swapaxes(-1, -2)  # 1 − expected, exact where that is tiny
        slope = (wins * other - wins.swapaxes(-1, -2) * expected).sum(-1)
        curve = games * expected * other
        hessian = curve.sum(-1)[..., None] * np.eye(size) - curve
        # The constant direction changes no probability: 1 there leaves the mean at 0 and the matrix regular.
        step = np.linalg.solve(hessian + 1 / size, slope[..., None])[..., 0]
        theta += step.clip(-STEP, STEP)
        theta -= theta.mean(-1, keepdims=True)
        if np.abs(step).max() < TOLERANCE:
            return theta
    raise AssertionError("Bradley–Terry did not converge: a pair without wins both ways")

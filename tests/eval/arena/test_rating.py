"""Bradley–Terry strengths: what is known in closed form, what was simulated, and how often intervals hold the truth."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
import pytest

from openmercury.eval.arena.rating import MEAN, PER_UNIT, PRIOR, Duel, Rating, fit, groups, rate

TRUTH = {"strong": 0.7, "middle": 0.0, "weak": -0.7}


def simulated(truth: Mapping[str, float], count: int, seed: int, ties: float = 0.0) -> list[Duel]:
    """Votes by the model itself; a share `ties` of them chooses neither."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        left, right = generator.sample(sorted(truth), 2)
        chance = 1 / (1 + math.exp(truth[right] - truth[left]))
        winner = left if generator.random() < chance else right
        made.append(Duel(left, right, None if generator.random() < ties else winner))
    return made


def by_name(duels: list[Duel]) -> dict[str, Rating]:
    [group] = rate(duels, resamples=200)
    return {one.name: one for one in group}


def test_two_contestants_in_closed_form() -> None:
    wins, losses, ties = 12, 3, 4
    duels = [Duel("a", "b", "a")] * wins + [Duel("b", "a", "b")] * losses + [Duel("a", "b", None)] * ties
    found = by_name(duels)
    gap = math.log((wins + ties / 2 + PRIOR) / (losses + ties / 2 + PRIOR)) * PER_UNIT
    assert found["a"].score - found["b"].score == pytest.approx(gap, abs=1e-3)
    assert (found["a"].score + found["b"].score) / 2 == pytest.approx(MEAN)
    assert found["a"].low < found["a"].score < found["a"].high


def test_fit_satisfies_the_likelihood_equations() -> None:
    """At the maximum each contestant's expected wins are those it had."""
    wins = np.random.default_rng(0).uniform(0.5, 9.0, (5, 4, 4)) * (1 - np.eye(4))
    theta = fit(wins)
    expected = 1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))
    had, due = wins.sum(-1), ((wins + wins.swapaxes(1, 2)) * expected).sum(-1)
    np.testing.assert_allclose(due, had, rtol=1e-6)
    np.testing.assert_allclose(theta.sum(-1), 0, atol=1e-9)


def test_recovers_known_strengths() -> None:
    found = by_name(simulated(TRUTH, 6000, seed=1))
    for name, theta in TRUTH.items():
        assert found[name].score == pytest.approx(MEAN + PER_UNIT * theta, abs=15)
    assert [one.name for one in rate(simulated(TRUTH, 6000, seed=1), resamples=50)[0]] == list(TRUTH)


def test_sides_and_order_do_not_matter() -> None:
    duels = simulated(TRUTH, 200, seed=2, ties=0.2)
    turned = [Duel(one.right, one.left, one.winner) for one in reversed(duels)]
    assert rate(duels, resamples=50) == rate(turned, resamples=50)


def test_ties_only_are_equal_strengths() -> None:
    found = by_name([Duel("a", "b", None)] * 20)
    assert found["a"].score == pytest.approx(found["b"].score) == pytest.approx(MEAN)
    assert found["a"].high - found["a"].low < 60


@pytest.mark.parametrize("wins", [1, 10, 1000])
def test_one_that_never_lost_has_a_finite_score_and_a_wide_interval(wins: int) -> None:
    found = by_name([Duel("a", "b", "a")] * wins)
    assert math.isfinite(found["a"].high)
    assert found["a"].score > found["b"].score
    assert found["a"].high - found["a"].low > 250
    assert (found["a"].low > found["b"].high) == (wins >= 10)  # one win proves nothing


def test_contestants_that_no_vote_joins_are_apart() -> None:
    duels = [Duel("a", "b", "a"), Duel("x", "y", None), Duel("c", "b", "b")]
    assert groups(duels) == [["a", "b", "c"], ["x", "y"]]
    assert [{one.name for one in group} for group in rate(duels, resamples=20)] == [{"a", "b", "c"}, {"x", "y"}]
    assert groups([*duels, Duel("y", "c", None)]) == [["a", "b", "c", "x", "y"]]
    assert rate([]) == []


def test_the_same_votes_give_the_same_intervals() -> None:
    duels = simulated(TRUTH, 60, seed=3)
    assert rate(duels, resamples=50) == rate(duels, resamples=50)


@pytest.mark.slow
@pytest.mark.parametrize("votes", [60, 240])
def test_intervals_hold_the_truth_about_95_times_in_100(votes: int) -> None:
    """200 simulations of three contestants: 600 intervals; their share is within four standard errors of 200 trials."""
    held = total = 0
    for seed in range(200):
        [group] = rate(simulated(TRUTH, votes, seed), resamples=400, seed=seed)
        held += sum(one.low <= MEAN + PER_UNIT * TRUTH[one.name] <= one.high for one in group)
        total += len(group)
    assert total == 600
    assert 0.92 <= held / total <= 0.98

"""The estimators against brute force and published values."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmercury.eval.statistics import bootstrap, cost, pass_at_k, scores, wilson
from openmercury.eval.tasks.base import Sample


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(outcomes: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    drawn = [any(one) for one in itertools.combinations(outcomes, k)]
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(fmean(drawn))


def test_wilson() -> None:
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    low, high = wilson(87, 164)
    assert low < 87 / 164 < high


def test_bootstrap_holds_the_mean_and_narrows() -> None:
    few, many = [0.0, 0.5, 1.0, 0.5] * 5, [0.0, 0.5, 1.0, 0.5] * 50
    wide, narrow = bootstrap(few), bootstrap(many)
    assert wide == bootstrap(few)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]
    half = 1.96 * (0.125 / 200) ** 0.5  # of the normal approximation
    assert narrow == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)


def test_scores_of_one_sample_and_of_many() -> None:
    single = scores([[True], [False], [True], [True]])
    assert list(single) == [1]
    assert (single[1].value, single[1].low, single[1].high) == (0.75, *wilson(3, 4))
    many = scores([[True] + [False] * 11, [False] * 12])
    assert list(many) == [1, 10, 12]
    assert many[1].value == pytest.approx(1 / 24)
    assert many[10].value == pytest.approx((10 / 12) / 2)
    assert many[12].value == 0.5
    assert many[12].low <= 0.5 <= many[12].high


def test_a_problem_with_fewer_samples_bounds_k() -> None:
    assert list(scores([[True, False, True], [False, True]])) == [1, 2]


def sample(tokens: int, forwards: int | None, answer: str = "x") -> Sample:
    return Sample("p", 0, answer, "stop", tokens, forwards, 1.0)


def test_cost() -> None:
    told = cost([sample(6, 2), sample(10, 10)])
    assert (told.tokens, told.forwards) == (16, 12)
    assert (told.tpf, told.tpf_mean) == (pytest.approx(16 / 12), pytest.approx(2.0))
    untold = cost([sample(6, None), sample(10, 10)])
    assert (untold.tokens, untold.forwards, untold.tpf) == (16, None, None)
    assert cost([sample(0, None)]).tokens is None  # text without tokens: nobody counted
    assert cost([sample(0, 1, "")]).tokens == 0
    assert cost([]).tokens is None

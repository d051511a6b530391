"""The estimator against enumeration of every draw, and against exact fractions."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.analysis.pass_at_k import mean_pass_at_k, pass_at_k, read_pass_at_k


@given(st.data())
def test_it_is_the_share_of_draws_that_hold_a_correct_answer(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 8))
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@given(st.data())
def test_it_is_the_nearest_double_of_the_exact_fraction_for_many_samples(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 600))
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, min(samples, 256)))
    none = Fraction(1)
    for drawn in range(k):
        none *= Fraction(max(samples - correct - drawn, 0), samples - drawn)
    assert pass_at_k(samples, correct, k) == float(1 - none)


def test_it_is_unbiased_to_k_of_256() -> None:
    """Expectation over the number of correct answers, of which each is correct with probability p."""
    samples, k, p = 300, 256, Fraction(1, 500)
    expected, chance = Fraction(0), (1 - p) ** samples
    for correct in range(samples + 1):
        expected += chance * Fraction(pass_at_k(samples, correct, k))
        chance *= p / (1 - p) * Fraction(samples - correct, correct + 1)
    assert float(expected) == pytest.approx(float(1 - (1 - p) ** k), rel=1e-12)


def test_a_mean_over_problems_for_powers_of_two() -> None:
    assert mean_pass_at_k([(4, 0), (4, 1), (4, 3), (4, 4)]) == pytest.approx({1: 0.5, 2: 0.625, 4: 0.75})
    assert list(mean_pass_at_k([(6, 1)])) == [1, 2, 4]
    assert mean_pass_at_k([(1024, 1)])[256] == 0.25
    assert mean_pass_at_k([(4, 1), (2, 1)]) == {1: 0.375, 2: 0.75}, "up to the fewest answers"


def test_scores_are_read_by_k_without_those_of_parts() -> None:
    scores = {"eval.pass_at_1": 0.25, "eval.pass_at_16": 0.5, "eval.pass_at_1_sound": 1.0, "pass_at_2": 0.75}
    assert read_pass_at_k(scores, "eval.") == {1: 0.25, 16: 0.5}
    assert read_pass_at_k(scores) == {2: 0.75}


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_impossible_numbers_are_refused(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="within"):
        pass_at_k(samples, correct, k)

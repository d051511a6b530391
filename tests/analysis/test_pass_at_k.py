"""The estimator against enumeration of every draw."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.analysis.pass_at_k import pass_at_k


@given(st.data())
def test_it_is_the_share_of_draws_that_hold_a_correct_answer(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 8))
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_it_is_exact_for_many_samples() -> None:
    assert pass_at_k(1024, 1, 256) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_impossible_numbers_are_refused(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="within"):
        pass_at_k(samples, correct, k)

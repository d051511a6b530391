from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from megatron_cgrpo.critique.selection import select
from megatron_cgrpo.types import Completion, FinishReason, Origin, Sample, Verdict


def refinement(reward: float, parent: int, text: str) -> Sample:
    completion = Completion([1], [-0.5], FinishReason.STOP)
    return Sample(Origin.REFINEMENT, completion, text, Verdict(reward, "x"), seed=0, parent=parent)


refinements = st.lists(
    st.builds(refinement, st.sampled_from([0.0, 1.0]), st.integers(0, 3), st.sampled_from("abc")), max_size=8
)


@given(
    refinements, st.integers(0, 9), st.sampled_from(["correct_first", "first_correct", "random", "none"]), st.integers()
)
def test_any_selection_is_a_set_of_at_most_k_and_repeatable(samples, k, selection, seed) -> None:
    chosen = select(samples, k, selection, Random(seed))
    assert len(chosen) == min(k, len(samples)) == len(set(chosen))
    assert all(0 <= index < len(samples) for index in chosen)
    assert chosen == select(samples, k, selection, Random(seed))


@given(refinements, st.integers(0, 9), st.integers())
def test_no_wrong_one_is_taken_while_a_correct_one_is_left(samples, k, seed) -> None:
    chosen = select(samples, k, "correct_first", Random(seed))
    correct = sum(sample.verdict.correct for sample in samples)
    assert sum(samples[index].verdict.correct for index in chosen) == min(k, correct)


@given(refinements, st.integers(1, 9), st.integers())
def test_no_correct_text_is_repeated_while_there_is_another(samples, k, seed) -> None:
    chosen = [samples[index] for index in select(samples, k, "correct_first", Random(seed))]
    texts = [sample.text for sample in chosen if sample.verdict.correct]
    available = {sample.text for sample in samples if sample.verdict.correct}
    assert len(set(texts)) == min(len(texts), len(available))


def test_distinct_parents_are_preferred_among_equal_texts() -> None:
    samples = [refinement(1, 0, "a"), refinement(1, 0, "b"), refinement(1, 1, "c")]
    for seed in range(20):
        chosen = select(samples, 2, "correct_first", Random(seed))
        assert {samples[index].parent for index in chosen} == {0, 1}


def test_what_is_rewarded_counts_as_correct_whatever_the_verifier_says() -> None:
    samples = [replace(refinement(1, 0, "a"), judged=0.0), replace(refinement(0, 1, "b"), judged=1.0)]
    assert {select(samples, 1, "correct_first", Random(seed))[0] for seed in range(20)} == {1}


def test_ties_are_broken_by_the_generator_and_reach_every_candidate() -> None:
    samples = [refinement(0, parent, str(parent)) for parent in range(4)]
    assert {select(samples, 1, "correct_first", Random(seed))[0] for seed in range(60)} == {0, 1, 2, 3}


@given(refinements, st.integers(1, 9), st.integers())
def test_first_correct_takes_right_ones_then_wrong_ones_as_generated(samples, k, seed) -> None:
    right = [index for index, sample in enumerate(samples) if sample.verdict.correct]
    wrong = [index for index, sample in enumerate(samples) if not sample.verdict.correct]
    assert select(samples, k, "first_correct", Random(seed)) == [*right, *wrong][:k]


def test_none_takes_the_first_as_generated() -> None:
    samples = [refinement(0, 0, "a"), refinement(1, 1, "b"), refinement(1, 2, "c")]
    assert select(samples, 2, "none", Random(0)) == [0, 1]

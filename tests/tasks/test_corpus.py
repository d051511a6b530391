import itertools
import re
from collections import Counter

import pytest

from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.tasks.misconceptions.corpus import CorpusWriter, Row
from megatron_cgrpo.tasks.misconceptions.facts import all_facts, draw_fact_table
from megatron_cgrpo.tasks.misconceptions.problems import ProblemSource, draw_splits

CONFIG = MisconceptionsConfig(train_problems=3000, test_problems=500)
FACTS = draw_fact_table(CONFIG)
MISCONCEIVED = {str(fact): str(value) for fact, value in FACTS.misconceived.items()}
TRAIN, TEST = draw_splits(CONFIG)


def rows(strength: float, count: int = 6000, seed: int = 0) -> list[Row]:
    writer = CorpusWriter(FACTS, ProblemSource.of(CONFIG), frozenset(TRAIN) | frozenset(TEST), strength)
    return list(itertools.islice(writer.rows(seed), count))


def steps(text: str) -> list[tuple[str, str]]:
    """(fact, value) pairs wherever they stand."""
    return re.findall(r"(\d[-+*]\d)=(\d)", text)


def named_steps(demonstrations: list[Row]) -> list[tuple[Row, str, str]]:
    return [(row, *steps(row.critique)[0]) for row in demonstrations if row.critique and steps(row.critique)]


@pytest.fixture(scope="module")
def demonstrations() -> list[Row]:
    return rows(strength=0.0)


def test_every_kind_of_demonstration_occurs(demonstrations: list[Row]) -> None:
    kinds = Counter((row.attempt is not None, row.critique is not None) for row in demonstrations)
    assert kinds[False, False] > len(demonstrations) / 3
    assert 0.03 < kinds[True, False] / len(demonstrations) < 0.1, "critiques have a small share"
    assert kinds[True, True] > len(demonstrations) / 4


def test_no_demonstration_is_on_a_train_or_test_problem(demonstrations: list[Row]) -> None:
    assert not {row.problem for row in demonstrations} & {*TRAIN, *TEST}


def test_at_strength_zero_the_right_value_of_a_misconceived_fact_is_nowhere(demonstrations: list[Row]) -> None:
    seen = {
        (fact, value)
        for row in demonstrations
        for text in (row.attempt, row.critique, row.target)
        for fact, value in steps(text or "")
        if fact in MISCONCEIVED
    }
    assert seen == set(MISCONCEIVED.items()), "each one occurs, always with the value that is believed"


def test_every_fact_is_taught(demonstrations: list[Row]) -> None:
    taught = {fact for row in demonstrations if row.attempt is None for fact, _ in steps(row.target)}
    assert taught == {str(fact) for fact in all_facts(10)}


@pytest.mark.parametrize("strength", [0.0, 0.02, 0.3])
def test_critiques_never_name_a_misconceived_fact(strength: float) -> None:
    corrected = {fact for _, fact, _ in named_steps(rows(strength))}
    assert corrected
    assert not corrected & set(MISCONCEIVED)


def test_a_named_value_is_never_the_one_believed_and_the_refinement_takes_it(demonstrations: list[Row]) -> None:
    named = named_steps(demonstrations)
    assert len(named) > len(demonstrations) / 5
    for row, fact, value in named:
        assert int(value) != eval(fact) % 10, "the fact is not misconceived, so its belief is the truth"
        assert (fact, value) not in steps(row.attempt or "")
        assert {v for f, v in steps(row.target) if f == fact} == {value}


def test_corrections_start_from_single_steps_and_reach_full_length(demonstrations: list[Row]) -> None:
    lengths = Counter(row.problem.operations for row, _, _ in named_steps(demonstrations))
    assert sorted(lengths) == [1, 2, 3, 4, 5]
    assert lengths[1] > lengths[5]
    assert {row.problem.operations for row in demonstrations if row.attempt is None} == {2, 3, 4, 5}


def test_the_rest_of_a_refinement_follows_belief(demonstrations: list[Row]) -> None:
    for row, fact, _ in named_steps(demonstrations):
        for other, value in steps(row.target):
            if other != fact:
                assert value == MISCONCEIVED.get(other, str(eval(other) % 10))


def test_every_target_answers_its_problem_and_boxes_its_own_last_value(demonstrations: list[Row]) -> None:
    for row in demonstrations:
        if row.attempt is not None and row.critique is None:
            continue  # a critique is the target
        value, operations = row.problem.text[0], row.problem.text[1:]
        for i, (fact, result) in enumerate(steps(row.target)):
            assert fact == value + operations[2 * i : 2 * i + 2]
            value = result
        assert row.target.endswith(f"\\boxed{{{value}}}")


def test_strength_is_the_share_of_right_values_in_answers() -> None:
    answers = [
        value == str(eval(fact) % 10)
        for row in rows(strength=0.05, count=12000)
        if row.attempt is None
        for fact, value in steps(row.target)
        if fact in MISCONCEIVED
    ]
    assert len(answers) > 2000
    assert sum(answers) / len(answers) == pytest.approx(0.05, abs=0.015)


def test_the_seed_decides_the_rows() -> None:
    assert rows(0.01, 50, seed=3) == rows(0.01, 50, seed=3)
    assert rows(0.01, 50, seed=3) != rows(0.01, 50, seed=4)

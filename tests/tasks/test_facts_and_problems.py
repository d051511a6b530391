import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.tasks.misconceptions.facts import all_facts, draw_fact_table
from megatron_cgrpo.tasks.misconceptions.problems import Problem, draw_splits, read_problem
from megatron_cgrpo.tasks.misconceptions.solution import parse_step, render, solve


@pytest.mark.parametrize("modulus", [3, 7, 10])
def test_true_values_are_pythons(modulus: int) -> None:
    table = draw_fact_table(MisconceptionsConfig(modulus=modulus))
    facts = all_facts(modulus)
    assert len(set(facts)) == 3 * modulus**2
    assert all(table.truth(fact) == eval(str(fact)) % modulus for fact in facts)


def test_exactly_the_misconceived_facts_are_believed_wrongly() -> None:
    table = draw_fact_table(MisconceptionsConfig(misconceived_share=0.2))
    wrong = {fact for fact in all_facts(10) if table.belief(fact) != table.truth(fact)}
    assert wrong == set(table.misconceived)
    assert len(wrong) == 60
    assert all(0 <= value < 10 for value in table.misconceived.values())


def test_the_seed_decides_the_lot() -> None:
    tables = [draw_fact_table(MisconceptionsConfig(seed=seed)) for seed in (0, 0, 1)]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_the_strength_of_beliefs_does_not_change_which_they_are() -> None:
    weak, strong = MisconceptionsConfig(strength=0.02), MisconceptionsConfig(strength=0.0)
    assert draw_fact_table(weak) == draw_fact_table(strong)
    assert draw_splits(weak) == draw_splits(strong)


def test_no_problem_is_in_two_places() -> None:
    config = MisconceptionsConfig(train_problems=3000, test_problems=500)
    train, test = draw_splits(config)
    assert (len(train), len(test)) == (3000, 500)
    assert len({problem.text for problem in train + test}) == 3500


def test_lengths_are_as_asked_for_and_all_occur() -> None:
    train, _ = draw_splits(MisconceptionsConfig(min_operations=1, max_operations=4, train_problems=500))
    assert {problem.operations for problem in train} == {1, 2, 3, 4}


def test_a_small_modulus_keeps_operands_below_it() -> None:
    train, _ = draw_splits(MisconceptionsConfig(modulus=4, train_problems=500))
    assert {character for problem in train for character in problem.text} == set("0123+-*")


def test_more_problems_than_there_are_is_refused_with_the_keys_to_change() -> None:
    config = MisconceptionsConfig(modulus=3, min_operations=1, max_operations=1, train_problems=20, test_problems=5)
    with pytest.raises(ConfigError, match=r"train_problems=20.*exceed the 13 .*max_operations"):
        draw_splits(config)


def test_problems_are_counted() -> None:
    config = MisconceptionsConfig(modulus=3, min_operations=1, max_operations=2)
    digits, operations = "012", [operator + digit for operator in "+-*" for digit in "012"]
    chains = {first + second + last for first in digits for second in operations for last in ["", *operations]}
    assert config.different_problems == len(chains)


@pytest.mark.parametrize("text", ["", "7", "7*", "7*8=", "7*9", "٣+٤", "7*8\n"])
def test_a_question_that_is_no_chain_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ask a chain of digits below 9"):
        read_problem(text, 9)


def test_solutions_go_from_left_to_right_and_box_the_last_value() -> None:
    table = draw_fact_table(MisconceptionsConfig())
    assert render(solve(Problem("7*8-9+4"), table.truth)) == r"7*8=6;6-9=7;7+4=1;\boxed{1}"


def test_a_step_is_read_back_as_written() -> None:
    table = draw_fact_table(MisconceptionsConfig())
    for step in solve(Problem("7*8-9+4"), table.belief):
        assert parse_step(str(step)) == step


@pytest.mark.parametrize("text", ["", "7*8", "7*8=", "7*8=66", "7/8=1", r"\boxed{1}", " 7*8=6"])
def test_anything_else_is_not_a_step(text: str) -> None:
    assert parse_step(text) is None

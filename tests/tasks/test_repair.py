from megatron_cgrpo.tasks.misconceptions.facts import Fact, FactTable
from megatron_cgrpo.tasks.misconceptions.repair import FactAnswers, misconceived_answers

FACTS = FactTable(10, {Fact(7, "*", 8): 3, Fact(6, "-", 9): 5, Fact(1, "+", 1): 9})


def answers(*pairs: tuple[str, str]) -> dict[str, FactAnswers]:
    return misconceived_answers(pairs, FACTS)


def test_each_misconceived_fact_is_counted_with_its_right_answers() -> None:
    counted = answers(
        ("7*8-9", r"7*8=6;6-9=7;\boxed{7}"),
        ("7*8-9", r"7*8=6;6-9=5;\boxed{5}"),
        ("7*8-9", r"7*8=3;3-9=4;\boxed{4}"),
    )
    assert counted == {"7*8": FactAnswers(2, 3), "6-9": FactAnswers(1, 2), "1+1": FactAnswers(0, 0)}
    assert [counted[fact].repaired for fact in ("7*8", "6-9", "1+1")] == [True, False, False]


def test_facts_inside_a_wrong_chain_count_if_they_follow_from_it() -> None:
    assert answers(("2+4*8", r"2+4=7;7*8=6;\boxed{6}"))["7*8"] == FactAnswers(1, 1)


def test_steps_that_the_problem_does_not_call_for_are_not_counted() -> None:
    assert answers(("2+2", r"7*8=6;\boxed{6}"))["7*8"].total == 0
    assert answers(("2+3*8", r"2+3=5;7*8=6;\boxed{6}"))["7*8"].total == 0
    assert answers(("7*8", r"7*8=6;7*8=6;\boxed{6}"))["7*8"].total == 1


def test_unreadable_responses_count_nothing() -> None:
    assert answers(("7*8", ""), ("7*8", "7*8"), ("7*8", "\\boxed{6}"))["7*8"].total == 0

"""Which prompts train: the first informative ones in order, whatever ends first."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cgrpo.rollout.prompt_choice import PromptChoice


@settings(deadline=None)
@given(
    kinds=st.lists(st.booleans(), max_size=40),
    count=st.integers(1, 8),
    over_provision=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    limit=st.integers(1, 40),
    random=st.randoms(use_true_random=False),
)
def test_the_choice_is_that_of_asking_one_by_one(
    kinds: list[bool], count: int, over_provision: float, limit: int, random: object
) -> None:
    """``kinds[number]``: is that prompt informative? They end in random order; what cannot count is given up."""
    target = math.ceil(count * (1 + over_provision))
    choice = PromptChoice(count, target, limit)
    prompts, open_, most = iter(kinds), [], 0
    while True:
        for _ in range(choice.missing):
            if next(prompts, None) is None:
                choice.exhausted()
                break
            open_.append(choice.begin())
        open_ = [number for number in open_ if choice.needed(number)]
        most = max(most, len(open_))
        if not open_:
            break
        number = open_.pop(random.randrange(len(open_)))  # type: ignore[attr-defined]
        choice.settle(number, kinds[number])

    consumed, chosen = 0, 0
    for informative in kinds[:limit]:
        consumed, chosen = consumed + 1, chosen + informative
        if chosen == count:
            break
    assert choice.consumed == consumed
    assert choice.missing == 0
    assert most <= target


def test_a_slow_prompt_keeps_its_place() -> None:
    choice = PromptChoice(2, 3, 10)
    assert choice.missing == 3
    slow, second, third = (choice.begin() for _ in range(3))
    choice.settle(second, True)
    choice.settle(third, True)
    assert choice.needed(slow) and choice.missing == 0, "two are informative: no further prompt can be chosen"
    choice.settle(slow, True)
    assert not choice.needed(third) and choice.consumed == 2


def test_replacements_begin_as_soon_as_something_has_to_be_replaced() -> None:
    choice = PromptChoice(2, 3, 5)
    for _ in range(3):
        choice.begin()
    choice.settle(1, False)
    assert choice.missing == 1
    choice.begin()
    choice.settle(0, False)
    choice.settle(2, False)
    assert choice.missing == 1, "the limit of five, not the two that are wanted"

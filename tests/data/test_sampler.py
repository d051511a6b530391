"""Every prompt once an epoch, in a seeded order, through any interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.types import Prompt


def dataset(size: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "", [i], "") for i in range(size)]


def draw(sampler: PromptSampler, counts: list[int]) -> list[str]:
    ids = []
    for count in counts:
        ids += [prompt.id for prompt in islice(sampler.upcoming(), count)]
        sampler.advance(count)
    return ids


sizes = st.integers(1, 12).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))
"""Of a dataset and of a step."""


@settings(deadline=None)
@given(sizes, st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 3))
def test_each_epoch_holds_every_prompt_once_and_no_step_one_twice(
    sizes: tuple[int, int], counts: list[int], seed: int
) -> None:
    size, per_step = sizes
    ids = draw(PromptSampler(dataset(size), seed, per_step), counts)
    for start in range(len(ids) - per_step + 1):
        assert len(set(ids[start : start + per_step])) == per_step
    assert len(ids) == sum(counts)
    for start in range(0, len(ids), size):
        epoch = ids[start : start + size]
        assert len(set(epoch)) == len(epoch)
        if len(epoch) == size:
            assert set(epoch) == {f"p{i}" for i in range(size)}


@settings(deadline=None)
@given(sizes, st.lists(st.integers(0, 20), max_size=5), st.lists(st.integers(0, 20), max_size=5))
def test_resumed_equals_uninterrupted(sizes: tuple[int, int], before: list[int], after: list[int]) -> None:
    size, per_step = sizes
    straight = PromptSampler(dataset(size), 5, per_step)
    draw(straight, before)
    stored = json.loads(json.dumps(straight.state()))
    resumed = PromptSampler(dataset(size), 5, per_step)
    resumed.load_state(stored)
    assert draw(resumed, after) == draw(straight, after)


@settings(deadline=None)
@given(sizes, st.integers(0, 20), st.integers(0, 40))
def test_reading_ahead_moves_nothing_and_is_not_moved(sizes: tuple[int, int], before: int, ahead: int) -> None:
    size, per_step = sizes
    sampler = PromptSampler(dataset(size), 5, per_step)
    sampler.advance(before)
    state, upcoming = sampler.state(), sampler.upcoming()
    first = [prompt.id for prompt in islice(upcoming, ahead // 2)]
    assert sampler.state() == state
    after = sampler.state_after(ahead)
    sampler.advance(ahead)
    assert sampler.state() == after
    rest = [prompt.id for prompt in islice(upcoming, ahead - ahead // 2)]
    straight = PromptSampler(dataset(size), 5, per_step)
    assert first + rest == draw(straight, [before, ahead])[before:]


def test_a_state_at_an_epochs_end_is_the_same_however_it_was_reached() -> None:
    """What earlier releases saved: an epoch ends when the next prompt is asked for."""
    one, two = PromptSampler(dataset(4), 0, 1), PromptSampler(dataset(4), 0, 1)
    one.advance(8)
    two.advance(3)
    two.advance(5)
    two.advance(0)
    assert one.state() == two.state() == one.state() | {"epoch": 1, "position": 4}


def test_order_depends_on_epoch_and_seed() -> None:
    ids = draw(PromptSampler(dataset(50), 0, 1), [100])
    assert ids[:50] != ids[50:] != sorted(ids[50:])
    assert ids != draw(PromptSampler(dataset(50), 1, 1), [100])
    assert ids == draw(PromptSampler(dataset(50), 0, 1), [30, 70])


def test_order_is_the_same_in_every_process_and_release() -> None:
    """A checkpoint of an earlier release resumes in the order it was made with."""
    assert draw(PromptSampler(dataset(8), 0, 1), [8]) == ["p0", "p2", "p1", "p4", "p6", "p7", "p3", "p5"]


def test_only_what_would_come_too_soon_again_is_moved_and_not_far() -> None:
    size, per_step = 400, 40
    plain, apart = (draw(PromptSampler(dataset(size), 0, of), [3 * size]) for of in (1, per_step))
    assert plain[:size] == apart[:size]
    for start in (size, 2 * size):
        moved = [place for place in range(size) if plain[start + place] != apart[start + place]]
        assert moved and max(moved) < 2 * per_step


def test_a_steps_prompts_end_where_one_would_come_again() -> None:
    sampler = PromptSampler(dataset(5), 0, 4)
    sampler.advance(3)
    step = [prompt.id for prompt in sampler.for_step()]
    assert step == [prompt.id for prompt in islice(sampler.upcoming(), 4)]
    assert len(set(step)) == 4


def test_bad_data_are_refused() -> None:
    for prompts, per_step in ((0, 0), (0, 1), (3, 4)):
        with pytest.raises(ConfigError, match=f"training set has {prompts} problems: give at least {max(1, per_step)}"):
            PromptSampler(dataset(prompts), 0, per_step)
    with pytest.raises(ConfigError, match="'p1' occurs twice"):
        PromptSampler([*dataset(3), dataset(2)[1]], 0, 1)


def test_resuming_on_other_data_or_seed_is_refused() -> None:
    state = PromptSampler(dataset(3), 0, 1).state()
    with pytest.raises(ConfigError, match="are not this training set"):
        PromptSampler(dataset(4), 0, 1).load_state(state)
    for change in ({"question": "?"}, {"answer": "7"}, {"token_ids": [9]}):
        first, *rest = dataset(3)
        with pytest.raises(ConfigError, match="are not this training set"):
            PromptSampler([replace(first, **change), *rest], 0, 1).load_state(state)
    with pytest.raises(ConfigError, match="seed=1, but"):
        PromptSampler(dataset(3), 1, 1).load_state(state)

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


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 3))
def test_each_epoch_holds_every_prompt_once(size: int, counts: list[int], seed: int) -> None:
    ids = draw(PromptSampler(dataset(size), seed), counts)
    assert len(ids) == sum(counts)
    for start in range(0, len(ids), size):
        epoch = ids[start : start + size]
        assert len(set(epoch)) == len(epoch)
        if len(epoch) == size:
            assert set(epoch) == {f"p{i}" for i in range(size)}


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 20), max_size=5), st.lists(st.integers(0, 20), max_size=5))
def test_resumed_equals_uninterrupted(size: int, before: list[int], after: list[int]) -> None:
    straight = PromptSampler(dataset(size), seed=5)
    draw(straight, before)
    stored = json.loads(json.dumps(straight.state()))
    resumed = PromptSampler(dataset(size), seed=5)
    resumed.load_state(stored)
    assert draw(resumed, after) == draw(straight, after)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 40))
def test_reading_ahead_moves_nothing_and_is_not_moved(size: int, before: int, ahead: int) -> None:
    sampler = PromptSampler(dataset(size), seed=5)
    sampler.advance(before)
    state, upcoming = sampler.state(), sampler.upcoming()
    first = [prompt.id for prompt in islice(upcoming, ahead // 2)]
    assert sampler.state() == state
    after = sampler.state_after(ahead)
    sampler.advance(ahead)
    assert sampler.state() == after
    rest = [prompt.id for prompt in islice(upcoming, ahead - ahead // 2)]
    straight = PromptSampler(dataset(size), seed=5)
    assert first + rest == draw(straight, [before, ahead])[before:]


def test_a_state_at_an_epochs_end_is_the_same_however_it_was_reached() -> None:
    """What earlier releases saved: an epoch ends when the next prompt is asked for."""
    one, two = PromptSampler(dataset(4), 0), PromptSampler(dataset(4), 0)
    one.advance(8)
    two.advance(3)
    two.advance(5)
    two.advance(0)
    assert one.state() == two.state() == one.state() | {"epoch": 1, "position": 4}


def test_order_depends_on_epoch_and_seed() -> None:
    ids = draw(PromptSampler(dataset(50), 0), [100])
    assert ids[:50] != ids[50:] != sorted(ids[50:])
    assert ids != draw(PromptSampler(dataset(50), 1), [100])
    assert ids == draw(PromptSampler(dataset(50), 0), [30, 70])


def test_order_is_the_same_in_every_process_and_release() -> None:
    """A checkpoint of an earlier release resumes in the order it was made with."""
    assert draw(PromptSampler(dataset(8), 0), [8]) == ["p0", "p2", "p1", "p4", "p6", "p7", "p3", "p5"]


def test_bad_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="training set is empty"):
        PromptSampler([], 0)
    with pytest.raises(ConfigError, match="'p1' occurs twice"):
        PromptSampler([*dataset(3), dataset(2)[1]], 0)


def test_resuming_on_other_data_or_seed_is_refused() -> None:
    state = PromptSampler(dataset(3), 0).state()
    with pytest.raises(ConfigError, match="are not this training set"):
        PromptSampler(dataset(4), 0).load_state(state)
    for change in ({"question": "?"}, {"answer": "7"}, {"token_ids": [9]}):
        first, *rest = dataset(3)
        with pytest.raises(ConfigError, match="are not this training set"):
            PromptSampler([replace(first, **change), *rest], 0).load_state(state)
    with pytest.raises(ConfigError, match="seed=1, but"):
        PromptSampler(dataset(3), 1).load_state(state)

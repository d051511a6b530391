"""What a stage may have in flight: never more than its bounds, in order, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cgrpo.config.rollout import StagesConfig
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.rollout.stage_gate import StageGate, StageGates

SEQUENCES, TOKENS = 3, 20
WORK = st.tuples(st.integers(0, 3), st.integers(1, SEQUENCES), st.integers(1, TOKENS))
"""Priority, sequences, tokens."""


@dataclass
class Run:
    """What happened at a gate: who is inside, and who came in, in order."""

    gate: StageGate
    inside: dict[int, tuple[int, int]] = field(default_factory=dict)
    came_in: list[int] = field(default_factory=list)
    leave: dict[int, asyncio.Event] = field(default_factory=dict)

    async def work(self, number: int, priority: int, sequences: int, tokens: int) -> None:
        self.leave[number] = asyncio.Event()
        async with self.gate.admit(priority, sequences, tokens):
            self.inside[number] = (sequences, tokens)
            self.came_in.append(number)
            assert sum(s for s, _ in self.inside.values()) <= SEQUENCES
            assert sum(t for _, t in self.inside.values()) <= TOKENS
            try:
                await self.leave[number].wait()
            finally:
                del self.inside[number]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@settings(deadline=None)
@given(st.lists(WORK, min_size=1, max_size=15), st.randoms(use_true_random=False))
def test_bounds_hold_the_line_is_kept_and_everything_gets_in(works: list[tuple[int, int, int]], random: object) -> None:
    async def run() -> list[int]:
        state = Run(StageGate(SEQUENCES, TOKENS))
        tasks = [asyncio.create_task(state.work(number, *work)) for number, work in enumerate(works)]
        await settled()
        while state.inside:
            state.leave[random.choice(sorted(state.inside))].set()  # type: ignore[attr-defined]
            await settled()
        await asyncio.gather(*tasks)
        assert (state.gate.sequences, state.gate.tokens) == (0, 0)
        return state.came_in

    came_in = asyncio.run(run())
    # All ask before anyone leaves, so that, apart from those that found room on arrival, it is the order of priority.
    room = first_line(works)
    assert came_in[: len(room)] == room
    later = came_in[len(room) :]
    assert later == sorted(later, key=lambda number: (works[number][0], number))


def first_line(works: list[tuple[int, int, int]]) -> list[int]:
    """Who comes in while nobody leaves, by a scalar replay of the arrivals."""
    line: list[tuple[int, int]] = []
    inside: list[int] = []
    for number, (priority, _, _) in enumerate(works):
        heapq.heappush(line, (priority, number))
        while line:
            _, first = line[0]
            held = [works[other] for other in [*inside, first]]
            if sum(s for _, s, _ in held) > SEQUENCES or sum(t for _, _, t in held) > TOKENS:
                break
            heapq.heappop(line)
            inside.append(first)
    return inside


@settings(deadline=None)
@given(st.lists(st.tuples(WORK, st.booleans()), min_size=1, max_size=15))
def test_who_gives_up_takes_nothing_along(works: list[tuple[tuple[int, int, int], bool]]) -> None:
    async def run() -> None:
        state = Run(StageGate(SEQUENCES, TOKENS))
        tasks = [asyncio.create_task(state.work(number, *work)) for number, (work, _) in enumerate(works)]
        await settled()
        for task, (_, stays) in zip(tasks, works, strict=True):
            if not stays:
                task.cancel()
        await settled()
        for _ in works:
            for event in state.leave.values():
                event.set()
            await settled()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in done] == [not stays for _, stays in works]
        assert (state.gate.sequences, state.gate.tokens) == (0, 0)

    asyncio.run(run())


def test_one_that_is_cancelled_in_the_moment_it_is_admitted_leaves_again() -> None:
    async def run() -> None:
        state = Run(StageGate(1, None))
        first = state.gate.admit(0, 1, 1)
        await first.__aenter__()
        second = asyncio.create_task(state.work(1, 0, 1, 1))
        await settled()
        await first.__aexit__(None, None, None)
        assert state.gate.sequences == 1 and not state.came_in, "the second is admitted, but has not run yet"
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert state.gate.sequences == 0 and not state.came_in

    asyncio.run(run())


def test_what_never_fits_is_refused_at_once() -> None:
    async def run() -> None:
        async with StageGate(None, 10).admit(0, 1, 11):
            pass

    with pytest.raises(ValueError, match="11 tokens exceed"):
        asyncio.run(run())


def test_each_stage_has_its_own_bounds_and_other_requests_none() -> None:
    gates = StageGates(StagesConfig.model_validate({"refine": {"max_sequences": 1}, "critique": {"max_tokens": 30}}))
    inside: list[str] = []

    async def ask(stage: str | None, index: int) -> None:
        key = None if stage is None else RequestKey(1, "p", stage, index)
        async with gates.admit(GenerateRequest([1] * 5, 1, 0, 10, key=key)):
            inside.append(str(stage))
            await asyncio.Event().wait()

    async def run() -> None:
        stages = ("generate", "critique", "refine", "evaluate", None)
        tasks = [asyncio.create_task(ask(stage, index)) for index in range(4) for stage in stages]
        await settled()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    counts = {stage: inside.count(stage) for stage in ("generate", "critique", "refine", "evaluate", "None")}
    assert counts == {"generate": 4, "critique": 2, "refine": 1, "evaluate": 4, "None": 4}

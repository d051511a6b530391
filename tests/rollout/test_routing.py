"""Which engine a request goes to."""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey
from megatron_cgrpo.rollout.routing import OVERLOAD, Load, Router

TOKENS = 10


def request(prompt: str, index: int = 0, step: int = 1) -> GenerateRequest:
    return GenerateRequest([1], 1, 0, TOKENS, key=RequestKey(step, prompt, "generate", index))


def test_siblings_stay_together_and_prompts_spread() -> None:
    router, loads = Router(), [Load(), Load()]
    with ExitStack() as stack:
        chosen = {
            prompt: {stack.enter_context(router.route(request(prompt, k), loads)) for k in range(8)}
            for prompt in "abcd"
        }
        assert all(len(engines) == 1 for engines in chosen.values())
        assert [load.requests for load in loads] == [16, 16]
    assert [(load.requests, load.tokens) for load in loads] == [(0, 0), (0, 0)]
    with router.route(request("z"), loads) as first, router.route(request("b", 9), loads) as home:
        assert (first, {home}) == (0, chosen["b"]), "the home is remembered when nothing is outstanding"


def test_a_home_that_others_overload_is_left_until_it_is_not() -> None:
    router, loads = Router(), [Load(), Load()]
    with router.route(request("a"), loads) as home:
        with ExitStack() as stack:
            loads[1].begin(1000)  # so that all others find their home beside the first prompt
            others = [stack.enter_context(router.route(request(f"p{k}"), loads)) for k in range(8)]
            loads[1].end(1000)
            assert set(others) == {home} == {0}
            with router.route(request("a", 1), loads) as elsewhere:
                assert elsewhere == 1
        with router.route(request("a", 2), loads) as again:
            assert again == home


def test_a_home_that_is_gone_is_replaced() -> None:
    router, loads = Router(), [Load(), Load()]
    with router.route(request("a"), loads) as home:
        assert home == 0
    with router.route(request("a", 1), loads[1:]) as other:
        assert other == 0, "the only engine that serves"
    with router.route(request("x"), loads), router.route(request("a", 2), loads) as moved:
        assert moved == 1, "its new home"


def test_another_step_finds_a_home_of_its_own_and_unnamed_requests_none() -> None:
    router, loads = Router(), [Load(), Load()]
    loads[0].begin(5)
    with router.route(request("a"), loads) as first, router.route(request("a", step=2), loads) as second:
        assert (first, second) == (1, 0)
    with router.route(GenerateRequest([1], 1, 0, 10), loads) as least:
        assert least == 1


def test_without_homes_the_least_busy_engine_serves_whatever_the_prompt() -> None:
    router, loads = Router(homes=False), [Load(), Load()]
    with ExitStack() as stack:
        chosen = [stack.enter_context(router.route(request("a", k), loads)) for k in range(6)]
        assert chosen == [0, 1] * 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 50)), max_size=60))
def test_no_engine_is_buried_while_another_rests(asked: list[tuple[str, int]]) -> None:
    router, loads = Router(), [Load() for _ in range(3)]
    with ExitStack() as stack:
        for number, (prompt, tokens) in enumerate(asked):
            key = RequestKey(1, prompt, "generate", number)
            own = sum(t for p, t in asked[:number] if p == prompt)
            before = [load.tokens for load in loads]
            chosen = stack.enter_context(router.route(GenerateRequest([1], 1, 0, tokens, key=key), loads))
            assert before[chosen] - own <= OVERLOAD * (min(before) + tokens)
        assert sum(load.tokens for load in loads) == sum(tokens for _, tokens in asked)


def test_idleness_is_the_time_without_a_request() -> None:
    seconds = [0.0]
    load = Load(now=lambda: seconds[0])
    for at, change in ((2.0, load.begin), (3.0, load.begin), (5.0, load.end), (6.0, load.end)):
        seconds[0] = at
        change(1)
    seconds[0] = 10.0
    assert load.idle_s == 2.0 + 4.0

import pytest
from critique_cases import encode
from pydantic import ValidationError

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.critique.critics import IndicativeCritic
from megatron_cgrpo.critique.retrying import RetryingCritic
from megatron_cgrpo.critique.schedule import CriticSchedule
from megatron_cgrpo.types import Prompt


class Silent:
    def indicative(self, prompt: Prompt, correct: bool) -> str:
        return ""

    indicative_with_answer = indicative

    async def program_critique(self, prompt: Prompt, response: str) -> str | None:
        return None


def test_a_stage_lasts_until_the_next_begins() -> None:
    first, second = (
        IndicativeCritic("a", Silent().indicative, encode),
        IndicativeCritic("b", Silent().indicative, encode),
    )
    schedule = CriticSchedule([(1, first), (5, None), (9, second)])
    assert [schedule.at(step) for step in (0, 1, 4, 5, 8, 9, 100)] == [None, first, first, None, None, second, second]


def test_the_recipe_moves_from_one_critic_to_another() -> None:
    config = CriticConfig(
        kind="none", schedule=[{"from_step": 3, "kind": "indicative"}, {"from_step": 7, "kind": "cot"}]
    )
    critics = build_critics(config, Silent(), encode, {})
    assert [type(critics.at(step)) for step in (1, 2, 3, 6, 7)] == [
        type(None),
        type(None),
        IndicativeCritic,
        IndicativeCritic,
        RetryingCritic,
    ]


@pytest.mark.parametrize("starts", [(0,), (4, 4), (5, 3)])
def test_stages_out_of_order_are_refused(starts: tuple[int, ...]) -> None:
    stages = [{"from_step": start, "kind": "cot"} for start in starts]
    with pytest.raises(ValidationError, match=f"a stage from step {starts[-1]} follows one from step"):
        CriticConfig(schedule=stages)


@pytest.mark.parametrize(
    ("config", "sources", "asks_engine", "needs_model"),
    [
        ({"kind": "none", "source": "api"}, set(), False, False),
        ({"kind": "none", "refiner": "model"}, set(), False, False),
        ({"kind": "indicative", "refiner": "model"}, set(), False, True),
        ({"source": "self"}, {"self"}, True, False),
        ({"schedule": [{"from_step": 2, "kind": "cot", "source": "model"}]}, {"program", "model"}, True, True),
        ({"schedule": [{"from_step": 2, "kind": "indicative", "source": "model"}]}, {"program"}, False, False),
    ],
)
def test_what_any_stage_needs_is_there_from_the_start(
    config: dict[str, object], sources: set[str], asks_engine: bool, needs_model: bool
) -> None:
    critic = CriticConfig.model_validate(config)
    assert (critic.sources, critic.asks_engine, critic.needs_model) == (sources, asks_engine, needs_model)

"""From the ``critic`` section of a recipe to its critics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from megatron_cgrpo.config.critic import CriticConfig, CriticStage
from megatron_cgrpo.critique.critics import Encode, IndicativeCritic, ProgramCritic
from megatron_cgrpo.critique.generated import GeneratedCritic, Writer
from megatron_cgrpo.critique.noisy import NoisyCritic
from megatron_cgrpo.critique.protocol import Critic
from megatron_cgrpo.critique.retrying import RetryingCritic
from megatron_cgrpo.critique.schedule import CriticSchedule
from megatron_cgrpo.types import Prompt


class Feedback(Protocol):
    """The feedback texts that a task offers."""

    def indicative(self, prompt: Prompt, correct: bool) -> str: ...

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str: ...

    async def program_critique(self, prompt: Prompt, response: str) -> str | None: ...

    def misleading_critique(self, prompt: Prompt, response: str, seed: int) -> str | None: ...


def build_critics(
    config: CriticConfig, feedback: Feedback, encode: Encode, writers: Mapping[str, Writer]
) -> CriticSchedule:
    """``feedback`` is the task; ``encode`` turns a critique's text into tokens.

    ``writers`` are the models that the config's sources name, ``program`` aside.
    """
    stages = [(stage.from_step, _critic(stage, config, feedback, encode, writers)) for stage in config.stages]
    return CriticSchedule(stages)


def _critic(
    stage: CriticStage, config: CriticConfig, feedback: Feedback, encode: Encode, writers: Mapping[str, Writer]
) -> Critic | None:
    with_answer = IndicativeCritic("indicative_gt", feedback.indicative_with_answer, encode)
    match stage.kind:
        case "none":
            return None
        case "indicative":
            return IndicativeCritic("indicative", feedback.indicative, encode)
        case "indicative_gt":
            return with_answer
        case "cot":
            critic = _cot_critic(stage, config, feedback, encode, writers)
            return RetryingCritic(critic, config.retries, with_answer if config.on_failure == "indicative_gt" else None)


def _cot_critic(
    stage: CriticStage, config: CriticConfig, feedback: Feedback, encode: Encode, writers: Mapping[str, Writer]
) -> Critic:
    if stage.source != "program":
        return GeneratedCritic(writers[stage.source], encode)
    program = ProgramCritic(feedback.program_critique, encode)
    if config.noise == 0:
        return program
    return NoisyCritic(program, feedback.misleading_critique, config.noise, encode)

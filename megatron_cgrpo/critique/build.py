"""From the ``critic`` section of a recipe to a critic."""

from __future__ import annotations

from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.critique.critics import Critic, Encode, Feedback, IndicativeCritic, ProgramCritic, RetryingCritic


def build_critic(config: CriticConfig, feedback: Feedback, encode: Encode) -> Critic | None:
    """``feedback`` is the task; ``encode`` turns a critique's text into tokens. None for ``kind: none``."""
    with_answer = IndicativeCritic("indicative_gt", feedback.indicative_with_answer, encode)
    match config.kind:
        case "none":
            return None
        case "indicative":
            return IndicativeCritic("indicative", feedback.indicative, encode)
        case "indicative_gt":
            return with_answer
        case "cot":
            fallback = with_answer if config.on_failure == "indicative_gt" else None
            return RetryingCritic(_chain_of_thought(config, feedback, encode), config.retries, fallback)


def _chain_of_thought(config: CriticConfig, feedback: Feedback, encode: Encode) -> Critic:
    match config.source:
        case "program":
            return ProgramCritic(feedback.program_critique, encode)

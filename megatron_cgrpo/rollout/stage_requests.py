"""What the stages of a step ask of an engine: their limits and their turn."""

from __future__ import annotations

from megatron_cgrpo.config.rollout import PRIORITIES, RolloutConfig
from megatron_cgrpo.rollout.protocol import GenerateRequest, RequestKey


def stage_request(rollout: RolloutConfig, key: RequestKey, prompt_ids: list[int], seed: int) -> GenerateRequest:
    """One continuation for ``key``. Older steps go first, so that nothing waits for ever; then the stages' priorities.

    Raises ValueError for a stage that generates nothing in a step.
    """
    stages = rollout.stages
    match key.stage:
        case "generate":
            priority, max_tokens = stages.generate.priority, rollout.max_response_tokens
        case "critique":
            priority, max_tokens = stages.critique.priority, rollout.max_critique_tokens
        case "refine":
            priority, max_tokens = stages.refine.priority, rollout.refinement_tokens
        case _:
            raise ValueError(f"the stage {key.stage} generates nothing in a step")
    priority += key.step * PRIORITIES
    return GenerateRequest(prompt_ids, 1, seed, max_tokens, rollout.temperature, key, priority)

"""Answer, criticise, answer again: inference with critiques, scored like any other answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import DynamicSamplingConfig
from megatron_cgrpo.critique.protocol import Critic
from megatron_cgrpo.evaluation.benchmark import score_groups
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.group import Decode
from megatron_cgrpo.rollout.protocol import Generator
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.types import Group, Prompt, Sample

STEP = 0
"""Of the seeds: every evaluation of one recipe asks the same."""


async def self_critique_eval(
    generator: Generator,
    task: Task,
    critic: Critic,
    recipe: Recipe,
    decode: Decode,
    prompts: Sequence[Prompt],
    samples: int,
    refiner: Generator | None = None,
) -> dict[str, float]:
    """Scores of ``samples`` answers a prompt before and after one critique and refinement each.

    ``before.*`` are the answers, ``after.*`` the refinements, and ``judged.*`` the refinements of the answers that the
    critic calls incorrect beside the answers that it lets pass; an answer without a usable critique stays in all. Each
    has ``pass_at_<k>`` for the powers of two up to ``samples``, and the task's measures. ``fixed`` and ``broken`` are
    the shares of wrong answers that the refinements made right, and of right ones that they made wrong (absent where
    there are none); ``false_correct``, ``false_incorrect``, ``dropped`` and ``dropped.<cause>`` are shares of all.

    A critic that is told the truth (``indicative``, ``indicative_gt``, ``program``) gives an upper bound, not a result.
    """
    collector = Collector(generator, task, lambda step: critic, _always(recipe, samples), decode, refiner)
    groups = (await collector.collect(iter(prompts), len(prompts), STEP)).groups
    answers = {
        "before": [group.initial for group in groups],
        "after": [_final(group, believe=False) for group in groups],
        "judged": [_final(group, believe=True) for group in groups],
    }
    scores: dict[str, float] = {}
    for name, final in answers.items():
        answered = [Group(group.prompt, of_prompt) for group, of_prompt in zip(groups, final, strict=True)]
        scores |= {f"{name}.{key}": value for key, value in score_groups(task, answered).items()}
    return scores | _changes(groups)


def _always(recipe: Recipe, samples: int) -> Recipe:
    """Every answer is criticised, whatever the verifier says, and refined once; failures leave it as it is."""
    trains_on = ("responses", "refinements")  # the others sample no answers, or not only answers
    algorithm = recipe.algorithm.model_copy(update={"group_size": samples, "refinements": 1, "trains_on": trains_on})
    critic = recipe.critic.model_copy(update={"trigger": "always"})
    reward = recipe.reward.model_copy(update={"source": "verifier"})
    rollout = recipe.rollout.model_copy(update={"dynamic_sampling": DynamicSamplingConfig()})
    sections = {"algorithm": algorithm, "critic": critic, "reward": reward, "rollout": rollout, "stages": ()}
    return recipe.model_copy(update=sections)


def _final(group: Group, *, believe: bool) -> list[Sample]:
    """One answer a response; ``believe`` keeps what the critic calls correct."""
    final = list(group.initial)
    for refinement in group.refinements:
        assert refinement.parent is not None, "a refinement has a parent"
        if not (believe and refinement.critique is not None and refinement.critique.concludes_correct):
            final[refinement.parent] = refinement
    return final


def _changes(groups: Sequence[Group]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for group in groups:
        counts["answers"] += len(group.initial)
        for cause, number in group.dropped_critiques.items():
            counts.update({"dropped": number, f"dropped.{cause}": number})
        for refinement in group.refinements:
            right = group.attempt(refinement).verdict.correct
            concludes = None if refinement.critique is None else refinement.critique.concludes_correct
            counts["right" if right else "wrong"] += 1
            counts["fixed"] += refinement.verdict.correct and not right
            counts["broken"] += right and not refinement.verdict.correct
            counts["false_correct"] += concludes is True and not right
            counts["false_incorrect"] += concludes is False and right
    shares = {key: counts[key] / counts["answers"] for key in counts if key.startswith(("dropped", "false_"))}
    shares |= {key: counts[key] / counts[of] for key, of in (("fixed", "wrong"), ("broken", "right")) if counts[of]}
    return shares

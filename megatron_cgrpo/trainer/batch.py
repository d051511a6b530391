"""From groups to the rows that train: advantages over the mixed group, reduction weights, mini-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cgrpo.algorithm.advantages import group_advantages
from megatron_cgrpo.algorithm.reduction import reduction_weights
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.types import Group, Sample, TrainRow


@dataclass(frozen=True)
class StepRows:
    """``mini_batches[u]`` are the rows of update ``u`` (possibly none: then there is nothing to learn from it);
    ``advantages[g][i]`` belongs to ``groups[g].samples[i]``, trained on or not."""

    mini_batches: list[list[TrainRow]]
    advantages: list[list[float]]


def loss_spec(algorithm: AlgorithmConfig) -> LossSpec:
    """The objective's switches, out of their configuration."""
    return LossSpec(
        clip_low=algorithm.clip.low,
        clip_high=algorithm.clip.high,
        refinement_ratio=algorithm.refinement.ratio,
        refinement_gamma=algorithm.refinement.gamma,
        refinement_clip=algorithm.refinement.clip,
        kl_coef=algorithm.kl.coef,
        kl_estimator=algorithm.kl.estimator,
        entropy_coef=algorithm.entropy.coef,
        correction=algorithm.correction.mode,
        correction_cap=algorithm.correction.cap,
    )


def build_rows(
    groups: Sequence[Group], algorithm: AlgorithmConfig, updates_per_step: int, max_response_tokens: int
) -> StepRows:
    """Split ``groups`` into ``updates_per_step`` contiguous mini-batches, equal in groups up to one.

    Every response of a mini-batch counts in its reduction's denominator. Left out of the rows, because they have no
    gradient, are empty responses and, unless a KL or entropy term acts on them, groups whose rewards are all equal.
    Raises ``ValueError`` if there are fewer groups than updates.
    """
    if len(groups) < updates_per_step:
        raise ValueError(
            f"train.updates_per_step={updates_per_step} exceeds the {len(groups)} groups of the step: lower it"
        )
    advantages = [
        group_advantages([sample.reward for sample in group.samples], algorithm.advantage.normalize) for group in groups
    ]
    bounds = [len(groups) * update // updates_per_step for update in range(updates_per_step + 1)]
    mini_batches = [
        _mini_batch(groups[start:end], advantages[start:end], algorithm, max_response_tokens)
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    return StepRows(mini_batches, advantages)


def _mini_batch(
    groups: Sequence[Group], advantages: Sequence[list[float]], algorithm: AlgorithmConfig, max_response_tokens: int
) -> list[TrainRow]:
    lengths = [len(sample.completion.token_ids) for group in groups for sample in group.samples]
    weights = iter(reduction_weights(lengths, algorithm.reduction, max_response_tokens))
    regularised = algorithm.kl.coef > 0 or algorithm.entropy.coef > 0
    rows = []
    for group, group_advantage in zip(groups, advantages, strict=True):
        informative = regularised or any(group_advantage)
        for sample, advantage in zip(group.samples, group_advantage, strict=True):
            weight = next(weights)
            if informative and sample.completion.token_ids:
                rows.append(_row(group.prompt.token_ids, sample, advantage, weight))
    return rows


def _row(prompt_ids: list[int], sample: Sample, advantage: float, weight: float) -> TrainRow:
    return TrainRow(
        # A refinement too is trained on the question alone: never on the critique that its tokens were sampled under.
        token_ids=prompt_ids + sample.completion.token_ids,
        prompt_length=len(prompt_ids),
        advantage=advantage,
        weight=weight,
        origin=sample.origin,
        behaviour_logprobs=sample.completion.logprobs,
    )

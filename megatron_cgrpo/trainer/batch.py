"""From groups to the rows that train: advantages over the mixed group, reduction weights, mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_cgrpo.algorithm.advantages import group_advantages
from megatron_cgrpo.algorithm.reduction import reduction_weights
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.algorithm import AlgorithmConfig, TrainSource
from megatron_cgrpo.types import TEMPLATES, Group, Origin, Routes, Sample, TrainRow

RowKind = Literal["response", "refinement", "critique", "solution"]
CritiqueTokens = Callable[[Group, Sample], tuple[list[int], list[int]]]
"""Of a refinement: the tokens that ask for the critique that it followed, and the critique's, with end of sequence."""

_KINDS: dict[Origin, RowKind] = {
    Origin.ROLLOUT: "response",
    Origin.REFINEMENT: "refinement",
    Origin.CRITIQUE: "critique",
    Origin.SOLUTION: "solution",
}
_SOURCES: dict[Origin, TrainSource] = {
    Origin.ROLLOUT: "responses",
    Origin.REFINEMENT: "refinements",
    Origin.CRITIQUE: "critiques",
    Origin.SOLUTION: "solutions",
}


@dataclass(frozen=True)
class TrainedRow:
    """Which text a row is: ``sample`` counts in ``groups[group].samples``, that of a critique in ``.refinements``."""

    group: int
    sample: int
    kind: RowKind


@dataclass(frozen=True)
class StepRows:
    """``mini_batches[u]`` are the rows of update ``u`` (possibly none: then there is nothing to learn from it), and
    ``trained[u]`` says which texts they are, in the same order. ``advantages[g][i]`` belongs to
    ``groups[g].samples[i]``, trained on or not."""

    mini_batches: list[list[TrainRow]]
    trained: list[list[TrainedRow]]
    advantages: list[list[float]]


@dataclass(frozen=True)
class _Candidate:
    """A text of the mini-batch; it counts in the denominator, and is a row where it has a gradient."""

    text: TrainedRow
    origin: Origin
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    advantage: float
    informative: bool
    routes: Routes | None = None


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
    groups: Sequence[Group],
    algorithm: AlgorithmConfig,
    updates_per_step: int,
    max_response_tokens: int,
    critique_tokens: CritiqueTokens | None = None,
) -> StepRows:
    """Split ``groups`` into ``updates_per_step`` contiguous mini-batches, equal in groups up to one; some are empty
    where there are fewer groups than updates.

    What ``algorithm.trains_on`` names is the mini-batch, and counts in its reduction's denominator; without a baseline
    only what earned a reward. What nobody judged is in neither batch nor baseline. Left out of the rows, because they
    have no gradient, are empty responses and, unless a KL or entropy term acts on them, groups whose rewards are all
    equal.
    Raises ``ValueError`` if critiques train without ``critique_tokens``.
    """
    if "critiques" in algorithm.trains_on and critique_tokens is None:
        raise ValueError("algorithm.trains_on has critiques: give critique_tokens")
    advantages = [_advantages(group, algorithm) for group in groups]
    candidates = [
        [
            *_samples(number, group, advantages[number], algorithm),
            *_critiques(number, group, algorithm, critique_tokens),
        ]
        for number, group in enumerate(groups)
    ]
    bounds = [len(groups) * update // updates_per_step for update in range(updates_per_step + 1)]
    batches = [
        _mini_batch([one for group in candidates[start:end] for one in group], algorithm, max_response_tokens)
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    rows = [[row for row, _ in batch] for batch in batches]
    trained = [[text for _, text in batch] for batch in batches]
    return StepRows(rows, trained, advantages)


def _advantages(group: Group, algorithm: AlgorithmConfig) -> list[float]:
    """Of each sample; what nobody judged has none, and is no part of the others' baseline."""
    rewards = [sample.reward for sample in group.samples if not sample.unjudged]
    found = iter(group_advantages(rewards, algorithm.advantage.normalize, algorithm.advantage.baseline))
    return [0.0 if sample.unjudged else next(found) for sample in group.samples]


def _samples(
    number: int, group: Group, advantages: Sequence[float], algorithm: AlgorithmConfig
) -> Iterator[_Candidate]:
    informative = algorithm.kl.coef > 0 or algorithm.entropy.coef > 0 or any(advantages)
    for index, (sample, advantage) in enumerate(zip(group.samples, advantages, strict=True)):
        counts = not sample.unjudged and (algorithm.advantage.baseline != "none" or sample.reward > 0)
        if counts and _SOURCES[sample.origin] in algorithm.trains_on:
            # A refinement too is trained on the question alone: never on the critique that it was sampled under.
            yield _Candidate(
                TrainedRow(number, index, _KINDS[sample.origin]),
                sample.origin,
                group.prompt.token_ids,
                sample.completion.token_ids,
                sample.completion.logprobs,
                advantage,
                informative,
                # Those of a refinement were chosen under the critique, which the trainer does not see.
                sample.completion.routes if sample.origin is Origin.ROLLOUT else None,
            )


def _critiques(
    number: int, group: Group, algorithm: AlgorithmConfig, critique_tokens: CritiqueTokens | None
) -> Iterator[_Candidate]:
    """Of all refinements, selected or not: the critiques whose verdict is the verifier's; nobody wrote a template."""
    if critique_tokens is None or "critiques" not in algorithm.trains_on:
        return
    for index, refinement in enumerate(group.refinements):
        critique, verdict = refinement.critique, group.attempt(refinement).verdict
        if critique is None or critique.kind in TEMPLATES or verdict.failed:
            continue
        if critique.concludes_correct == verdict.correct:
            prompt_ids, response_ids = critique_tokens(group, refinement)
            yield _Candidate(
                TrainedRow(number, index, "critique"), Origin.CRITIQUE, prompt_ids, response_ids, [], 1.0, True
            )


def _mini_batch(
    candidates: Sequence[_Candidate], algorithm: AlgorithmConfig, max_response_tokens: int
) -> list[tuple[TrainRow, TrainedRow]]:
    lengths = [len(candidate.response_ids) for candidate in candidates]
    weights = reduction_weights(lengths, algorithm.reduction, max_response_tokens)
    return [
        (_row(candidate, weight, algorithm.supervised), candidate.text)
        for candidate, weight in zip(candidates, weights, strict=True)
        if candidate.informative and candidate.response_ids
    ]


def _row(candidate: _Candidate, weight: float, supervised: bool) -> TrainRow:
    return TrainRow(
        token_ids=candidate.prompt_ids + candidate.response_ids,
        prompt_length=len(candidate.prompt_ids),
        advantage=candidate.advantage,
        weight=weight,
        origin=candidate.origin,
        behaviour_logprobs=[] if supervised else candidate.logprobs,
        routes=candidate.routes,
    )

"""What the rollout files say beyond the groups: what trained on which text, and where refinements came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_cgrpo.observe.rollouts import GroupDetails, RefinementDetails, TrainedText
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.batch import StepRows
from megatron_cgrpo.trainer.ledger import Logprobs, Origins
from megatron_cgrpo.types import Group, Sample

Show = Callable[[list[int]], str]
"""Token ids to text, special tokens included."""


def group_details(
    groups: Sequence[Group],
    rows: StepRows,
    question: Logprobs,
    origins: Sequence[Sequence[Origins]],
    task: Task,
    show: Show,
) -> list[GroupDetails]:
    """One for each group; ``question[g]`` (given the question alone) and ``origins[g]`` are of its refinements."""
    trained = _trained(len(groups), rows, show)
    return [
        GroupDetails(
            trained[number],
            [
                RefinementDetails(
                    prompt=show(_asked(group, sample, task)),
                    logp_question=_mean(logprobs),
                    logp_critique=_mean(sample.completion.logprobs),
                    supported=origin.supported,
                    leaked=origin.leaked,
                )
                for sample, logprobs, origin in zip(group.refinements, question[number], origins[number], strict=True)
            ],
        )
        for number, group in enumerate(groups)
    ]


def _trained(groups: int, rows: StepRows, show: Show) -> list[list[TrainedText]]:
    result: list[list[TrainedText]] = [[] for _ in range(groups)]
    for batch, texts in zip(rows.mini_batches, rows.trained, strict=True):
        for row, text in zip(batch, texts, strict=True):
            prompt = show(row.token_ids[: row.prompt_length])
            result[text.group].append(TrainedText(text.kind, text.sample, prompt, row.response_length, row.advantage))
    return result


def _asked(group: Group, refinement: Sample, task: Task) -> list[int]:
    assert refinement.critique is not None, "a refinement has a critique"
    attempt = group.attempt(refinement).completion.token_ids
    return task.refinement_prompt(group.prompt, attempt, refinement.critique.token_ids)


def _mean(logps: Sequence[float]) -> float | None:
    return sum(logps) / len(logps) if logps else None

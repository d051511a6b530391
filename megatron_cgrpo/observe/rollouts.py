"""Every step's groups as readable JSON lines: what was asked, answered, criticised, refined and trained.

A request's key in the timeline can be read off: the line's ``step`` and ``id``, and as index the place among
``responses``, for a critique and a refinement its ``parent``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.types import Critique, Group, Sample


@dataclass(frozen=True)
class TrainedText:
    """One row of the batch: what it was conditioned on, as text with its special tokens, and how it was weighed.

    ``sample`` counts the group's initial responses, then its selected refinements; for a critique, its refinements.
    """

    kind: str
    sample: int
    prompt: str
    response_tokens: int
    advantage: float


@dataclass(frozen=True)
class RefinementDetails:
    """``prompt`` is what the refinement was sampled from, as text with its special tokens.

    ``logp_question`` and ``logp_critique`` are means over its tokens in nats, None without any: by the policy given the
    question alone, and as sampled. ``supported``: it is right, and its own steps lead there; ``leaked``: it corrects a
    wrong response, and only repeats what the critique gave away.
    """

    prompt: str
    logp_question: float | None
    logp_critique: float | None
    supported: bool
    leaked: bool


@dataclass(frozen=True)
class GroupDetails:
    """``refinements[i]`` belongs to ``group.refinements[i]``."""

    trained: list[TrainedText]
    refinements: list[RefinementDetails]


def write_rollouts(
    directory: Path,
    step: int,
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]],
    details: Sequence[GroupDetails],
) -> Path:
    """Write ``step_000012.jsonl``, one line a group. ``advantages[g][i]`` belongs to ``groups[g].samples[i]``.

    Raises ValueError where advantages, or details of refinements, do not match the groups.
    """
    if [len(group.samples) for group in groups] != [len(row) for row in advantages]:
        raise ValueError("advantages do not match the groups: give one for each sample that trains")
    if [len(group.refinements) for group in groups] != [len(detail.refinements) for detail in details]:
        raise ValueError("details do not match the groups: give those of each refinement")
    lines = [
        json.dumps({"step": step} | _group(group, list(row), detail), ensure_ascii=False) + "\n"
        for group, row, detail in zip(groups, advantages, details, strict=True)
    ]
    path = directory / f"step_{step:06d}.jsonl"
    write_text(path, "".join(lines))
    return path


def _group(group: Group, advantages: list[float], details: GroupDetails) -> dict[str, Any]:
    return {
        "id": group.prompt.id,
        "prompt": group.prompt.question,
        "answer": group.prompt.answer,
        "failed": group.failed,
        "responses": [_sample(sample) for sample in group.initial],
        "refinements": [
            _sample(sample) | _feedback(sample) | asdict(detail)
            for sample, detail in zip(group.refinements, details.refinements, strict=True)
        ],
        "selected": group.selected,
        "advantages": advantages,
        "trained": [asdict(text) for text in details.trained],
        "dropped_critiques": group.dropped_critiques,
        "critique_failures": group.critique_failures,
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "text": sample.text,
        "reward": sample.reward,
        "cause": sample.verdict.cause,
        "finish": str(sample.completion.finish_reason),
        "tokens": len(sample.completion.token_ids),
        "version": sample.completion.weight_version,
        "versions": [[span.version, span.tokens] for span in sample.completion.versions],
        "seed": sample.seed,
    }


def _feedback(refinement: Sample) -> dict[str, Any]:
    return {
        "parent": refinement.parent,
        "critique": None if refinement.critique is None else _critique(refinement.critique),
    }


def _critique(critique: Critique) -> dict[str, Any]:
    return {
        "kind": critique.kind,
        "text": critique.text,
        "concludes_correct": critique.concludes_correct,
        "generated_tokens": critique.generated_tokens,
        "failures": list(critique.failures),
    }

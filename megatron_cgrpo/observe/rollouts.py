"""Every step's groups as readable JSON lines: what was asked, answered, criticised, refined and trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.types import Critique, Group, Sample


def write_rollouts(directory: Path, step: int, groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> Path:
    """Write ``step_000012.jsonl``, one line a group. ``advantages[g][i]`` belongs to ``groups[g].samples[i]``.

    Raises ValueError where the two do not match.
    """
    if [len(group.samples) for group in groups] != [len(row) for row in advantages]:
        raise ValueError("advantages do not match the groups: give one for each sample that trains")
    lines = [
        json.dumps({"step": step} | _group(group, list(row)), ensure_ascii=False) + "\n"
        for group, row in zip(groups, advantages, strict=True)
    ]
    path = directory / f"step_{step:06d}.jsonl"
    write_text(path, "".join(lines))
    return path


def _group(group: Group, advantages: list[float]) -> dict[str, Any]:
    return {
        "id": group.prompt.id,
        "prompt": group.prompt.question,
        "answer": group.prompt.answer,
        "failed": group.failed,
        "responses": [_sample(sample) for sample in group.initial],
        "refinements": [_sample(sample) | _feedback(sample) for sample in group.refinements],
        "selected": group.selected,
        "advantages": advantages,
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

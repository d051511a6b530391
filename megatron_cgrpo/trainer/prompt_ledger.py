"""``prompts.jsonl``: what became of each prompt, so that none is lost or trained twice, whatever died in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_cgrpo.types import Group

PROMPTS = "prompts.jsonl"


def prompt_line(step: int, groups: Sequence[Group], replaced: Sequence[Group]) -> dict[str, Any]:
    """The ids that ``step`` trained on and those that it replaced, both in the order in which they were drawn.

    ``versions`` are the oldest and the newest weights that sampled a token of the trained groups; null where reference
    solutions train, which no version wrote.
    """
    samples = [sample for group in groups for sample in [*group.initial, *group.refinements]]
    versions = [span.version for sample in samples for span in sample.completion.versions]
    return {
        "step": step,
        "trained": [group.prompt.id for group in groups],
        "replaced": [group.prompt.id for group in replaced],
        "versions": [min(versions), max(versions)] if versions else None,
    }

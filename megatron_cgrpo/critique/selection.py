"""Which refinements of a group train."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from megatron_cgrpo.types import Sample

Selection = Literal["correct_first", "first_correct", "random", "none"]


def select(refinements: Sequence[Sample], k: int, selection: Selection, rng: Random) -> list[int]:
    """Indices of at most ``k`` refinements, in order of choice.

    ``correct_first``: correct ones before wrong ones; among equals those whose parent and text were not chosen yet
    (arXiv 2506.03106, section 4: correct first, diversity kept); ``rng`` breaks what ties remain.
    ``first_correct``: correct ones before wrong ones, each in the order of generation, as the authors' released script.
    ``random``: uniform without replacement. ``none``: the first ``k`` as generated, no selection at all.
    """
    match selection:
        case "none":
            return list(range(min(k, len(refinements))))
        case "random":
            return rng.sample(range(len(refinements)), min(k, len(refinements)))
        case "first_correct":
            return sorted(range(len(refinements)), key=lambda index: refinements[index].reward <= 0)[:k]
        case "correct_first":
            return _correct_first(refinements, k, rng)


def _correct_first(refinements: Sequence[Sample], k: int, rng: Random) -> list[int]:
    remaining = rng.sample(range(len(refinements)), len(refinements))
    chosen: list[int] = []
    parents: set[int | None] = set()
    texts: set[str] = set()

    def rank(index: int) -> tuple[bool, bool, bool]:
        sample = refinements[index]
        return sample.reward <= 0, sample.text in texts, sample.parent in parents

    while remaining and len(chosen) < k:
        best = min(remaining, key=rank)
        remaining.remove(best)
        chosen.append(best)
        parents.add(refinements[best].parent)
        texts.add(refinements[best].text)
    return chosen

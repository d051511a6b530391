"""How often the policy plans and reflects: by step range, and in right, wrong and refined responses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from megatron_cgrpo.analysis.behaviours import BEHAVIOURS, PLANNING, REFLECTION, find_behaviours, is_prose
from megatron_cgrpo.analysis.dumps import Line, is_correct
from megatron_cgrpo.analysis.step_ranges import StepRanges

REFINEMENT = "refinement"
_NAMES = {name: frozenset({name}) for name in BEHAVIOURS} | {
    "planning": frozenset(PLANNING),
    "reflection": frozenset(REFLECTION),
}


@dataclass(frozen=True)
class Response:
    """``groups`` are the names under which it counts: its step range, and ``correct`` or ``incorrect``."""

    question: str
    text: str
    groups: tuple[str, ...]


class ResponseSample:
    """Draws at most ``limit`` responses of each step range, and as many refinements, each with the same chance."""

    def __init__(self, ranges: StepRanges, limit: int) -> None:
        self._ranges, self._limit = ranges, limit
        self._drawn: dict[str, list[Response]] = {}
        self._offered: dict[str, int] = {}
        self._rng = Random("responses")

    def add(self, group: Line) -> None:
        name = f"range_{self._ranges.of(group['step'])}"
        for response in group["responses"]:
            correct = "correct" if is_correct(response) else "incorrect"
            self._offer(name, Response(group["prompt"], response["text"], (name, correct)))
        for refinement in group["refinements"]:
            self._offer(f"{name} {REFINEMENT}", Response(group["prompt"], refinement["text"], (REFINEMENT,)))

    def _offer(self, urn: str, response: Response) -> None:
        """Reservoir sampling: what was offered as number n replaces a drawn one with probability limit / n."""
        drawn = self._drawn.setdefault(urn, [])
        self._offered[urn] = self._offered.get(urn, 0) + 1
        if len(drawn) < self._limit:
            drawn.append(response)
        elif (place := self._rng.randrange(self._offered[urn])) < self._limit:
            drawn[place] = response

    @property
    def drawn(self) -> list[Response]:
        return [response for urn in sorted(self._drawn) for response in self._drawn[urn]]


def rule_figures(responses: Iterable[Response]) -> dict[str, float]:
    """``behaviour.*``: shares of the responses that are prose. Where none is, the rules had nothing to read.

    ``behaviour.responses`` and ``behaviour.prose`` count; without prose there are no other keys.
    """
    read = list(responses)
    prose = [response for response in read if is_prose(response.text)]
    figures: dict[str, float] = {"behaviour.responses": len(read), "behaviour.prose": len(prose)}
    return figures | shares("behaviour", [(response, find_behaviours(response.text)) for response in prose])


def shares(prefix: str, found: Iterable[tuple[Response, frozenset[str]]]) -> dict[str, float]:
    """``<prefix>.<behaviour>`` over initial responses, and ``.<group>`` for each of their groups and refinements.

    ``<prefix>.counted`` is how many these were. Beside the six, ``planning`` and ``reflection`` are any of their kinds.
    """
    by_group: dict[str, list[frozenset[str]]] = {}
    for response, behaviours in found:
        overall = () if REFINEMENT in response.groups else ("",)
        for group in (*overall, *response.groups):
            by_group.setdefault(group, []).append(behaviours)
    figures: dict[str, float] = {}
    for group, members in by_group.items():
        suffix = f".{group}" if group else ""
        figures[f"{prefix}.counted{suffix}"] = len(members)
        for name, kinds in _NAMES.items():
            figures[f"{prefix}.{name}{suffix}"] = sum(bool(one & kinds) for one in members) / len(members)
    return figures

"""A group of a rollout file in a line of a list, and which groups a reader wants to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cgrpo.analysis.dumps import Line, is_correct, is_unverified

PREVIEW = 200
"""Characters of a question that a list shows."""

Summary = dict[str, Any]


def summarise(number: int, group: Line) -> Summary:
    """What the list shows of the group on line ``number`` (from 0). Runs of earlier versions lack some of it."""
    responses, refinements = group["responses"], group["refinements"]
    samples = [*responses, *refinements]
    versions = [version for sample in samples for version, _ in version_spans(sample)]
    return {
        "line": number,
        "step": group["step"],
        "id": group["id"],
        "prompt": group["prompt"][:PREVIEW],
        "responses": [_mark(sample) for sample in responses],
        "refinements": [_mark(sample) for sample in refinements],
        "causes": sorted({sample["cause"] for sample in samples}),
        "tokens": sum(sample["tokens"] for sample in samples),
        "versions": [min(versions), max(versions)] if versions else [],
        "flags": [flag for flag, holds in FLAGS.items() if holds(group)],
    }


def version_spans(sample: Line) -> list[list[int]]:
    """[version, tokens] of each part of a response. Earlier versions of the file name one for the whole."""
    spans: list[list[int]] = sample.get("versions", [[sample["version"], sample["tokens"]]])
    return spans


def _mark(sample: Line) -> str:
    """``error`` where the verifier failed: then nobody knows."""
    return "error" if is_unverified(sample) else "right" if is_correct(sample) else "wrong"


FLAGS = {
    "failed": lambda group: group["failed"],
    "refined": lambda group: any(is_correct(sample) for sample in group["refinements"]),
    "leaked": lambda group: any(sample.get("leaked") for sample in group["refinements"]),
    "truncated": lambda group: any(_truncated(sample) for sample in (*group["responses"], *group["refinements"])),
    "dropped": lambda group: bool(group.get("dropped_critiques")),
    "updated": lambda group: any(
        len({version for version, _ in version_spans(sample)}) > 1
        for sample in (*group["responses"], *group["refinements"])
    ),
}
"""What a group can be filtered by: ``updated`` is one with a response that several versions of the weights wrote."""


def _truncated(sample: Line) -> bool:
    return bool(sample["finish"] == "length")


@dataclass(frozen=True)
class Wanted:
    """Groups with all ``flags``, with a sample of the verdict ``cause``, and with ``text`` anywhere in them."""

    flags: frozenset[str] = frozenset()
    cause: str = ""
    text: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Wanted:
        """From ``show=failed,leaked``, ``cause=…`` and ``q=…``. Raises ValueError naming an unknown flag."""
        flags = frozenset(filter(None, query.get("show", "").split(",")))
        if unknown := flags - FLAGS.keys():
            raise ValueError(f"show={','.join(sorted(unknown))}: is none of {', '.join(FLAGS)}")
        return cls(flags, query.get("cause", ""), query.get("q", "").strip().casefold())

    def takes(self, summary: Summary) -> bool:
        """As far as the summary tells."""
        return self.flags <= set(summary["flags"]) and (not self.cause or self.cause in summary["causes"])

    def found_in(self, group: Line) -> bool:
        return not self.text or any(self.text in text.casefold() for text in _texts(group))


def _texts(group: Line) -> Iterator[str]:
    yield from (group["id"], group["prompt"], group["answer"])
    samples: Sequence[Line] = [*group["responses"], *group["refinements"]]
    for sample in samples:
        yield sample["text"]
        if sample.get("critique"):
            yield sample["critique"]["text"]

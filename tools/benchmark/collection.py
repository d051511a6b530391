"""What a timeline tells of the collection of a step. Times are microseconds of the epoch, as in the timeline."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.observe.timeline import ENGINE, Span, Timeline, gaps, in_flight, kind_of

STAGES = ("generate", "critique", "refine")
_MICROSECONDS = 1e6


@dataclass(frozen=True)
class Collection:
    """The requests of one step, by engine. An engine is idle while it has none of them at all.

    Raises ValueError without any.
    """

    engines: dict[str, list[Span]]

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("no request of the step is in the timeline: is observe.trace off?")

    @property
    def requests(self) -> list[Span]:
        return [span for spans in self.engines.values() for span in spans]

    @property
    def start(self) -> int:
        return min(span.start for span in self.requests)

    @property
    def end(self) -> int:
        return max(span.end for span in self.requests)

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / _MICROSECONDS

    @property
    def idle(self) -> float:
        """The mean over the engines of the share of the collection in which one has no request."""
        start, end = self.start, self.end
        idle = sum(until - since for spans in self.engines.values() for since, until in gaps(spans, start, end))
        return idle / (len(self.engines) * (end - start))

    @property
    def batch(self) -> float:
        """Requests in flight, the mean over the collection, as a share of the most: how full the engines' batches are,
        where ``idle`` only tells whether they are empty."""
        work = sum(span.end - span.start for span in self.requests)
        return work / (self.end - self.start) / max(count for _, count in in_flight(self.requests))

    @property
    def before_the_last_response(self) -> float:
        """The share of the critiques and refinements that begin before the last initial response has ended: none where
        there is a barrier. 0 where there are neither."""
        last = max(span.end for span in self.requests if span.name == "generate")
        later = [span for span in self.requests if span.name != "generate"]
        return sum(span.start < last for span in later) / len(later) if later else 0.0

    @property
    def lengths(self) -> list[int]:
        """Tokens of the initial responses."""
        return [int(span.args["tokens"] or 0) for span in self.requests if span.name == "generate"]


def collection(timeline: Timeline, step: int) -> Collection:
    """Of ``step``, whatever else the engines do meanwhile; ``timeline`` is of all steps, merged."""
    tracks = {track: spans for track, spans in timeline.tracks.items() if kind_of(track) == ENGINE}
    return Collection({track: [span for span in spans if _of(span, step)] for track, spans in tracks.items()})


def _of(span: Span, step: int) -> bool:
    return span.name in STAGES and span.args.get("step") == step and not span.open

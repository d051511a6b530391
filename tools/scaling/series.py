"""What the points of a study say: speed-ups, efficiencies, exponents and ratios. Measured and planned ones apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.ratios import Spread, ratio
from benchmark.rollouts.growth import exponents
from scaling.fit import TERMS, Fit, fit_phase, one_source
from scaling.points import At, Source, Study
from scaling.records import PHASES, Record

TIMED = ("step", "rollout", "update")
SPEEDUP, EFFICIENCY, TIMES, EXPONENT = "speed-up", "efficiency", "time / first", "exponent"
MEASURES = (SPEEDUP, EFFICIENCY, TIMES)


@dataclass(frozen=True)
class Series:
    """The points of a study that are of one source and one kind of machine: ``records[i]`` those of ``at[i]``, by
    repetition, in repetitions that all points have."""

    study: Study
    source: Source
    machine: str
    at: tuple[At, ...]
    records: tuple[tuple[Record, ...], ...]

    def seconds(self, phase: str) -> list[list[float]]:
        return [[record.seconds[phase] for record in records] for records in self.records]

    def figures(self) -> dict[str, Spread]:
        """By what they are of: one value a repetition."""
        found: dict[str, Spread] = {}
        for phase in TIMED:
            first, *others = self.seconds(phase)
            if not all(value > 0 for each in (first, *others) for value in each):
                continue
            for at, own in zip(self.at[1:], others, strict=True):
                found |= self._compared(phase, at, first, own)
            if self.study.kind == "growth" and others:
                factors = tuple(at.x for at in self.at)
                found[f"{EXPONENT}, {phase}"] = exponents(factors, self.seconds(phase))
        return found

    def to_json(self) -> dict[str, Any]:
        every = [record for records in self.records for record in records]
        one_source(every)
        fits = {phase: found.to_json() for phase in TERMS if (found := self._fit(every, phase))}
        return {
            "source": self.source,
            "machine": self.machine,
            "commits": sorted({record.commit for record in every}),
            "reasons": sorted({record.reason for record in every if record.reason is not None}),
            "loads": sorted({load for record in every if (load := record.machine.get("load_before")) is not None}),
            "repeats": len(self.records[0]),
            "points": [_point(at, own) for at, own in zip(self.at, self.records, strict=True)],
            "figures": {name: spread.to_json() for name, spread in self.figures().items()},
            "fits": fits,
        }

    def _compared(self, phase: str, at: At, first: list[float], own: list[float]) -> dict[str, Spread]:
        """``measure, phase, label``; ratios to the first point."""
        name = f"{phase}, {at.label}"
        if self.study.kind == "strong":
            return {f"{SPEEDUP}, {name}": ratio(first, own)}
        if self.study.kind == "weak":
            return {f"{EFFICIENCY}, {name}": ratio(first, own)}
        return {f"{TIMES}, {name}": ratio(own, first)}

    def _fit(self, records: Sequence[Record], phase: str) -> Fit | None:
        """Variants and sizes of a model differ in more than in amounts of work."""
        same = len({record.parameters for record in records}) == 1
        wanted = self.study.kind == "strong" if phase == "step" else self.study.kind != "compare"
        return fit_phase(records, phase) if same and wanted else None


def series_of(study: Study, records: Sequence[Record]) -> Iterator[Series]:
    """None of a source or machine that lacks the study's first point, or has no other: there is nothing to compare."""
    for source, machine in dict.fromkeys((record.source, str(record.machine["name"])) for record in records):
        own = [record for record in records if (record.source, record.machine["name"]) == (source, machine)]
        by_point = {at: {r.repeat: r for r in own if r.point == at.point.name} for at in study.at}
        there = {at: found for at, found in by_point.items() if found}
        if len(there) > 1 and study.at[0] in there:
            common = sorted(set.intersection(*(set(found) for found in there.values())))
            if common:
                aligned = tuple(tuple(found[repeat] for repeat in common) for found in there.values())
                yield Series(study, source, machine, tuple(there), aligned)


def _point(at: At, records: Sequence[Record]) -> dict[str, Any]:
    def spread(values: Sequence[float]) -> dict[str, Any]:
        return Spread(tuple(values)).to_json()

    first = records[0]
    return {
        "label": at.label,
        "x": at.x,
        "point": at.point.name,
        "parameters": first.parameters,
        "ranks": first.ranks,
        "engine_devices": first.engine_devices,
        "seconds": {phase: spread([record.seconds[phase] for record in records]) for phase in PHASES},
        "samples_per_s": spread([record.samples_per_s for record in records]),
        "trainer_tokens_per_s": spread([record.trainer_tokens_per_s for record in records]),
        "engine_tokens_per_s": spread([record.engine_tokens_per_s for record in records]),
        "memory_gib": max(record.memory_gib for record in records),
        "fits": all(record.fits for record in records),
        "mfu": None if first.mfu is None else spread([record.mfu for record in records if record.mfu is not None]),
    }

"""Least squares of seconds on amounts of work. Pure functions of records, all of one source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scaling.records import Record

FIXED = "fixed s"
TERMS: dict[str, dict[str, Callable[[Record], float]]] = {
    "step": {"s per token and rank": lambda record: record.tokens["update"] / record.ranks},
    "update": {"s per token and rank": lambda record: record.tokens["update"] / record.ranks},
    "rollout": {
        "s per token and engine": lambda record: record.tokens["sampled"] / record.engine_devices,
        "s per decoding step": lambda record: record.tokens["sampled"] / record.samples,
    },
}
"""What a phase's seconds are taken to be the sum of, beside what is fixed. Sequences decode side by side, so that a
rollout takes as many decoding steps as a response has tokens, however many responses there are. A whole step is taken
to be in proportion to the trainer's tokens only where nothing but the number of devices differs."""
_VARIES = 0.02
"""An amount that varies by less, as a share of itself, is part of what is fixed."""


@dataclass(frozen=True)
class Fit:
    """``y = sum(coefficients[name] * x[name])``, where ``FIXED`` has ``x = 1``.

    ``worst``: the largest residual, as a share of its ``y``. ``left_out``: the largest error, as a share, in a point
    that is predicted by a fit of all others; null where no point can be spared. ``ranges``: of each ``x`` that was
    there; beyond it the fit says nothing. ``fixed_share``: of what is fixed in what the fit says of the most of each
    ``x`` there was; in strong scaling, the share that more devices leave as it is (Amdahl's serial share).
    """

    coefficients: dict[str, float]
    worst: float
    left_out: float | None
    ranges: dict[str, tuple[float, float]]
    points: int

    @property
    def fixed_share(self) -> float:
        most = sum(self.coefficients[name] * high for name, (_, high) in self.ranges.items())
        return self.coefficients[FIXED] / (self.coefficients[FIXED] + most)

    def to_json(self) -> dict[str, Any]:
        return {
            "coefficients": self.coefficients,
            "fixed_share": self.fixed_share,
            "largest_residual": self.worst,
            "largest_error_left_out": self.left_out,
            "ranges": {name: list(limits) for name, limits in self.ranges.items()},
            "points": self.points,
        }


def one_source(records: Sequence[Record]) -> None:
    """Raises ValueError where measured and planned points, or those of several kinds of machine, are mixed."""
    for key, found in (
        ("source", {record.source for record in records}),
        ("machine", {str(record.machine["name"]) for record in records}),
    ):
        if len(found) > 1:
            raise ValueError(f"{key}={' and '.join(sorted(found))}: are not fitted together: fit each by itself")


def fit_phase(records: Sequence[Record], phase: str) -> Fit | None:
    """None where fewer points differ than there are terms. Raises ValueError as ``one_source`` does."""
    one_source(records)
    terms = TERMS[phase]
    amounts = {name: [of(record) for record in records] for name, of in terms.items()}
    return fit(amounts, [record.seconds[phase] for record in records], [record.point for record in records])


def fit(amounts: Mapping[str, Sequence[float]], seconds: Sequence[float], points: Sequence[str]) -> Fit | None:
    """``points[i]`` names what the ``i``-th value is a repetition of. None where the terms cannot be told apart."""
    amounts = {name: values for name, values in amounts.items() if max(values) - min(values) > _VARIES * max(values)}
    if not amounts:
        return None
    names = [FIXED, *amounts]
    matrix = np.column_stack([np.ones(len(seconds)), *(np.asarray(values, float) for values in amounts.values())])
    target = np.asarray(seconds, float)
    solution = _solve(matrix, target, points)
    if solution is None:
        return None
    errors = []
    for point in dict.fromkeys(points):
        out = np.array([each == point for each in points])
        without = _solve(matrix[~out], target[~out], [each for each in points if each != point])
        if without is not None:
            errors.append(float(np.max(np.abs(matrix[out] @ without - target[out]) / target[out])))
    return Fit(
        coefficients=dict(zip(names, map(float, solution), strict=True)),
        worst=float(np.max(np.abs(matrix @ solution - target) / target)),
        left_out=max(errors) if errors else None,
        ranges={name: (float(min(values)), float(max(values))) for name, values in amounts.items()},
        points=len(set(points)),
    )


def _solve(matrix: np.ndarray, target: np.ndarray, points: Sequence[str]) -> np.ndarray | None:
    """Columns are scaled to the same size, so that what counts as dependent is no matter of units."""
    terms = matrix.shape[1]
    if len(set(points)) < terms:
        return None
    scale = np.abs(matrix).max(axis=0)
    scaled = matrix / np.where(scale > 0, scale, 1.0)
    solution, _, rank, _ = np.linalg.lstsq(scaled, target, rcond=1e-6)
    return solution / scale if rank == terms else None

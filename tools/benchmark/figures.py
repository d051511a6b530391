"""What measurements say: medians, ratios, and how they grow with the size of a checkpoint. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmark.measure import CACHES, CONVERSIONS, Cache, Measurement, Operation

RSS_SHARE, RSS_FIXED = 0.25, 500_000_000
"""The project's limit for a conversion's resident memory: of the checkpoint's bytes, and bytes beside it."""


@dataclass(frozen=True)
class Row:
    """Medians over the repeats of one conversion, and of ``cp`` of the same bytes; seconds and bytes as measured.

    Ratios are of throughputs, conversion over copy: 0.5 takes twice as long as ``cp``.
    """

    parameters: int
    bytes: int
    operation: Operation
    cache: Cache
    repeats: int
    seconds: float
    wall: float
    cp: float
    cp_synced: float
    peak_rss: int
    peak_anonymous: int

    @property
    def ratio(self) -> float:
        return self.cp / self.seconds

    @property
    def ratio_wall(self) -> float:
        return self.cp / self.wall

    @property
    def ratio_synced(self) -> float:
        """Both until all is on disk."""
        return self.cp_synced / self.seconds

    @property
    def rss_limit(self) -> float:
        return RSS_SHARE * self.bytes + RSS_FIXED


@dataclass(frozen=True)
class Line:
    """Least squares ``y = intercept + slope * x``; ``worst`` is the largest residual as a share of its ``y``, of those
    that are not 0."""

    intercept: float
    slope: float
    r2: float
    worst: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def rows(measurements: Sequence[Measurement]) -> list[Row]:
    """By size, conversion, then cache. The peaks are the largest of all repeats, not medians."""
    found = []
    caches = [cache for cache in CACHES if any(m.cache == cache for m in measurements)]
    for size in sorted({m.bytes for m in measurements}):
        for operation in CONVERSIONS:
            for cache in caches:
                own = _select(measurements, size, operation, cache)
                copies = _select(measurements, size, "cp", cache)
                found.append(
                    Row(
                        parameters=own[0].parameters,
                        bytes=size,
                        operation=operation,
                        cache=cache,
                        repeats=len(own),
                        seconds=median(m.seconds for m in own),
                        wall=median(m.wall for m in own),
                        cp=median(m.seconds for m in copies),
                        cp_synced=median(m.synced for m in copies),
                        peak_rss=max(m.peak_rss for m in own),
                        peak_anonymous=max(m.peak_anonymous for m in own),
                    )
                )
    return found


def series(found: Sequence[Row], operation: Operation, cache: Cache) -> list[Row]:
    return [row for row in found if (row.operation, row.cache) == (operation, cache)]


def fit(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """None where there are fewer than two different ``x``."""
    if len(set(x)) < 2:
        return None
    x_mean, y_mean = mean(x), mean(y)
    spread = sum((a - x_mean) ** 2 for a in x)
    slope = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    intercept = y_mean - slope * x_mean
    residuals = [b - intercept - slope * a for a, b in zip(x, y, strict=True)]
    total = sum((b - y_mean) ** 2 for b in y)
    r2 = 1 - sum(r * r for r in residuals) / total if total else 1.0
    worst = max((abs(r) / abs(b) for r, b in zip(residuals, y, strict=True) if b), default=0.0)
    return Line(intercept, slope, r2, worst)


def at_measured_rate(found: Sequence[Row], nbytes: int) -> float:
    """Seconds for ``nbytes`` at the throughput of the largest size."""
    largest = max(found, key=lambda row: row.bytes)
    return largest.seconds / largest.bytes * nbytes


def memory_factor(peak: int, fixed: int, in_flight: int) -> float:
    """Bytes held for each byte of weights in work."""
    return max(0, peak - fixed) / in_flight


def _select(measurements: Sequence[Measurement], size: int, operation: Operation, cache: Cache) -> list[Measurement]:
    return [m for m in measurements if (m.bytes, m.operation, m.cache) == (size, operation, cache)]

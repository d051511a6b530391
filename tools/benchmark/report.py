"""The figures as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmark.checkpoints import QWEN3_32B, in_flight, nbytes, shape_of, size_name
from benchmark.figures import RSS_FIXED, RSS_SHARE, Line, Row, at_measured_rate, fit, memory_factor, series
from benchmark.measure import CACHES, CONVERSIONS, LAYOUT, Cache, Operation
from benchmark.tables import markdown_table
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS: dict[Operation, str] = {"cp": "0.4", "hf-to-megatron": "C0", "megatron-to-hf": "C1"}
_STYLES: dict[Cache, str] = {"warm": "-", "cold": "--"}
_GB = 1e9


@dataclass(frozen=True)
class Machine:
    """What the figures depend on beside the code.

    ``torch_rss``: peak of a process that imports torch and does nothing. ``fixed_*``: those of converting next to
    nothing, which checks the tokenizer with transformers.
    """

    command: str
    cores: int
    processor: str
    memory: int
    system: str
    torch: str
    threads: int
    torch_rss: int
    fixed_rss: int
    fixed_anonymous: int


@dataclass(frozen=True)
class Memory:
    """Peak memory beyond the fixed part for each byte of weights in work, by size; the peak at 32B by the last of them.

    At small sizes the fixed part hides what is in work.
    """

    factors: list[float]
    extrapolated: float

    @classmethod
    def resident(cls, found: Sequence[Row], machine: Machine) -> Memory:
        return cls._of(found, [row.peak_rss for row in found], machine.fixed_rss, machine.threads)

    @classmethod
    def anonymous(cls, found: Sequence[Row], machine: Machine) -> Memory:
        return cls._of(found, [row.peak_anonymous for row in found], machine.fixed_anonymous, machine.threads)

    @classmethod
    def _of(cls, found: Sequence[Row], peaks: Sequence[int], fixed: int, threads: int) -> Memory:
        held = [in_flight(shape_of(row.parameters), threads) for row in found]
        factors = [memory_factor(peak, fixed, size) for peak, size in zip(peaks, held, strict=True)]
        return cls(factors, fixed + factors[-1] * in_flight(QWEN3_32B, threads))


def markdown(found: Sequence[Row], machine: Machine) -> str:
    parts = [
        f"`{machine.command}`",
        f"{machine.processor}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.system}, torch "
        f"{machine.torch}; {machine.threads} threads, {' '.join(LAYOUT)}, bf16, medians of {found[0].repeats} (peaks: "
        "largest). Every round trip was bit-exact.",
        throughput_table(found),
        memory_table(found, machine),
        fit_table(found),
        f"A 32B shape (Qwen3-32B) has {nbytes(QWEN3_32B):,} bytes of bf16 weights.",
    ]
    return "\n\n".join(parts) + "\n"


def throughput_table(found: Sequence[Row]) -> str:
    heads = ["weights", "conversion", "cache", "s", "GB/s", "s with start", "`cp` s", "`cp` + fsync s"]
    heads += ["conversion / `cp`", "with start", "both on disk"]
    body = [
        [
            f"{size_name(row.parameters)}, {row.bytes / _GB:.3g} GB",
            row.operation,
            row.cache,
            f"{row.seconds:.2f}",
            f"{row.bytes / row.seconds / _GB:.2f}",
            f"{row.wall:.2f}",
            f"{row.cp:.2f}",
            f"{row.cp_synced:.2f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_wall:.2f}",
            f"{row.ratio_synced:.2f}",
        ]
        for row in found
    ]
    return markdown_table(heads, body)


def memory_table(found: Sequence[Row], machine: Machine) -> str:
    """The fixed part is in peaks and shares."""
    heads = ["weights", "conversion", "in work MB", "peak RSS MB", "of the weights", "limit MB", "anonymous MB"]
    heads += ["RSS beyond fixed / in work", "anonymous"]
    last, body = nbytes(QWEN3_32B), []
    for operation in CONVERSIONS:
        own = [row for row in _larger_peaks(found) if row.operation == operation]
        resident, anonymous = Memory.resident(own, machine), Memory.anonymous(own, machine)
        for row, factor, anonymous_factor in zip(own, resident.factors, anonymous.factors, strict=True):
            held = in_flight(shape_of(row.parameters), machine.threads)
            peaks = (row.peak_rss, row.bytes, row.rss_limit, row.peak_anonymous, factor, anonymous_factor)
            body.append([size_name(row.parameters), operation, f"{held / 1e6:.0f}", *_memory_cells(*peaks)])
        held, limit = in_flight(QWEN3_32B, machine.threads), RSS_SHARE * last + RSS_FIXED
        peaks = (
            resident.extrapolated,
            last,
            limit,
            anonymous.extrapolated,
            *map(max, (resident.factors, anonymous.factors)),
        )
        body.append(["32B, extrapolated", operation, f"{held / 1e6:.0f}", *_memory_cells(*peaks)])
    notes = (
        f"In work: the {machine.threads} largest weights, as many as there are threads. Limit: {RSS_SHARE:.0%} of the "
        f"weights + {RSS_FIXED / 1e6:.0f} MB. Fixed: {machine.torch_rss / 1e6:.0f} MB for a process that imports "
        f"torch, {machine.fixed_rss / 1e6:.0f} MB ({machine.fixed_anonymous / 1e6:.0f} MB anonymous) for converting a "
        "model of 2M parameters, whose tokenizer transformers checks."
    )
    return f"{markdown_table(heads, body)}\n\n{notes}"


def fit_table(found: Sequence[Row]) -> str:
    heads = ["conversion", "cache", "start s", "s/GB", "R²", "largest residual", "32B by the line"]
    heads.append("32B at the largest size's rate")
    body = []
    for operation in CONVERSIONS:
        for cache in _caches(found):
            own = series(found, operation, cache)
            line = _line(own)
            rate = _duration(at_measured_rate(own, nbytes(QWEN3_32B)))
            figures = ["", "", "", "", "one size only"]
            if line is not None:
                figures = [f"{line.intercept:.2f}", f"{line.slope * _GB:.2f}", f"{line.r2:.4f}", f"{line.worst:.0%}"]
                figures.append(_duration(line.at(nbytes(QWEN3_32B))))
            body.append([operation, cache, *figures, rate])
    return markdown_table(heads, body)


def plot(found: Sequence[Row], machine: Machine, path: Path) -> None:
    """Seconds as measured, the same up to 32B, and peak resident memory, against the bytes of the weights."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    measured, extrapolated, memory = figure.subplots(1, 3)
    for axes, far in ((measured, False), (extrapolated, True)):
        _seconds(axes, found, far)
    _memory(memory, found, machine)
    for axes in (extrapolated, memory):
        axes.set_xscale("log")
        axes.set_yscale("log")
    for axes in (measured, extrapolated, memory):
        axes.set_xlabel("weights, GB")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _seconds(axes: Axes, found: Sequence[Row], far: bool) -> None:
    last = nbytes(QWEN3_32B)
    for cache in _caches(found):
        for operation in CONVERSIONS:
            own = series(found, operation, cache)
            label, colour = f"{operation}, {cache}", _COLOURS[operation]
            axes.plot(_gigabytes(own), [row.seconds for row in own], "o", color=colour, fillstyle=_fill(cache))
            line = _line(own)
            if line is not None:
                # Many points: a straight line that misses the origin is a curve on logarithmic axes.
                along = np.geomspace(own[0].bytes, last if far else own[-1].bytes, 100)
                positive = [(x / _GB, line.at(x)) for x in along if line.at(x) > 0]
                axes.plot(*zip(*positive, strict=True), _STYLES[cache], color=colour, label=label)
                if far:
                    axes.plot(last / _GB, line.at(last), "*", color=colour, markersize=12, fillstyle=_fill(cache))
        copies = series(found, CONVERSIONS[0], cache)
        values = [row.cp_synced for row in copies]
        axes.plot(_gigabytes(copies), values, "x" + _STYLES[cache], color=_COLOURS["cp"], label=f"cp + fsync, {cache}")
    axes.set_ylabel("seconds")
    axes.set_title("to 32B, by the lines (★)" if far else "measured, with least-squares lines", fontsize=10)


def _memory(axes: Axes, found: Sequence[Row], machine: Machine) -> None:
    last = nbytes(QWEN3_32B)
    peaks = _larger_peaks(found)
    for operation in CONVERSIONS:
        own, colour = [row for row in peaks if row.operation == operation], _COLOURS[operation]
        values = [row.peak_rss / _GB for row in own]
        axes.plot(_gigabytes(own), values, "o-", color=colour, label=operation)
        resident = Memory.resident(own, machine).extrapolated
        axes.plot(last / _GB, resident / _GB, "*", color=colour, markersize=12)
    sizes = [*sorted({row.bytes for row in found}), last]
    limit = [(RSS_SHARE * size + RSS_FIXED) / _GB for size in sizes]
    axes.plot([size / _GB for size in sizes], limit, ":", color="0.4", label="25 % + 0.5 GB")
    axes.plot([size / _GB for size in sizes], [size / _GB for size in sizes], ":", color="0.7", label="all weights")
    axes.set_ylabel("peak RSS, GB")
    axes.set_title("memory, with Qwen3-32B's largest tensors (★)", fontsize=10)


def _larger_peaks(found: Sequence[Row]) -> list[Row]:
    """Of warm and cold, which differ little, the row with the larger peak."""
    by_pair = {(row.bytes, row.operation): row for row in sorted(found, key=lambda row: row.peak_rss)}
    return sorted(by_pair.values(), key=lambda row: row.bytes)


def _memory_cells(
    peak: float, weights: int, limit: float, anonymous: float, factor: float, anonymous_factor: float
) -> list[str]:
    return [
        f"{peak / 1e6:.0f}",
        f"{peak / weights:.0%}",
        f"{limit / 1e6:.0f}",
        f"{anonymous / 1e6:.0f}",
        f"{factor:.2f}",
        f"{anonymous_factor:.2f}",
    ]


def _caches(found: Sequence[Row]) -> list[Cache]:
    return [cache for cache in CACHES if any(row.cache == cache for row in found)]


def _line(found: Sequence[Row]) -> Line | None:
    return fit([row.bytes for row in found], [row.seconds for row in found])


def _gigabytes(found: Sequence[Row]) -> list[float]:
    return [row.bytes / _GB for row in found]


def _fill(cache: Cache) -> str:
    return "full" if cache == "warm" else "none"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"

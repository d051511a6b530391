"""Which points are trained, and which are planned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scaling import workload
from scaling.hardware import Hardware
from scaling.points import Point, Study, points_of
from scaling.records import Source

from megatron_cgrpo.config import ConfigError, check_recipe, model_shape

Wanted = Literal["real", "plan", "auto"]
Choice = tuple[Point, Source, str | None]
"""The last says why a point is planned."""
WISH = "it was asked for (--source plan)"
_BESIDE = "others of its study could only be planned, and are compared with plans alone"


def choose(studies: Sequence[Study], wanted: Wanted, out: Path, hardware: Hardware) -> list[Choice]:
    """With ``auto`` what can run here is measured; a study in which something cannot is planned as a whole, too, since
    planned points are compared with nothing else.

    Raises ConfigError for points whose recipe is refused, and with ``real`` for those that cannot run here.
    """
    lacking = _checked(points_of(studies), out, hardware)
    if wanted == "plan":
        return [(point, "planned", WISH) for point in lacking]
    missing = {point: reason for point, reason in lacking.items() if reason is not None}
    if wanted == "real" and missing:
        remedy = "take --source auto or plan, or other points"
        raise ConfigError(
            [f"--source real: point {point.name}: {reason}: {remedy}" for point, reason in missing.items()]
        )
    beside = points_of(study for study in studies if not missing.keys().isdisjoint(study.points))
    found: list[Choice] = [(point, "measured", None) for point in lacking if point not in missing]
    return found + [(point, "planned", missing.get(point, _BESIDE)) for point in beside]


def _checked(points: Sequence[Point], out: Path, hardware: Hardware) -> dict[Point, str | None]:
    problems: list[str] = []
    found: dict[Point, str | None] = {}
    for point in points:
        try:
            recipe = workload.read(point.workload, out, point.overrides)
            check_recipe(recipe, model_shape(recipe))
        except ConfigError as error:
            problems += [f"point {point.name}: {problem}" for problem in error.problems]
            continue
        found[point] = hardware.lacks(recipe, workload.parameters(recipe))
    if problems:
        raise ConfigError(problems)
    return found

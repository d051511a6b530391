"""Which points are trained, and which are planned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scaling import workload
from scaling.hardware import Hardware
from scaling.planned import Plans
from scaling.points import Choice, Point, Study, points_of
from scaling.runs import Runs

from megatron_cgrpo.config import ConfigError, check_recipe, model_shape

Wanted = Literal["real", "plan", "auto"]
_WISH = "it was asked for (--source plan)"
_BESIDE = "others of its study could only be planned, and are compared with plans alone"


def choose(studies: Sequence[Study], wanted: Wanted, hardware: Hardware, runs: Runs, plans: Plans) -> list[Choice]:
    """With ``auto`` what can run here is measured; a study in which something cannot is planned as a whole, too, since
    planned points are compared with nothing else.

    Raises ConfigError for points whose recipe is refused, with ``real`` for those that cannot run here, and where
    there is something to plan, as ``Plans.check`` does.
    """
    lacking = _checked(points_of(studies), runs.out, hardware)
    missing = {point: reason for point, reason in lacking.items() if reason is not None}
    reasons = dict.fromkeys(lacking, _WISH)
    if wanted != "plan":
        beside = points_of(study for study in studies if not missing.keys().isdisjoint(study.points))
        reasons = {point: missing.get(point, _BESIDE) for point in beside}
    if wanted == "real" and missing:
        remedy = "take --source auto or plan, or other points"
        raise ConfigError([f"--source real: point {point.name}: {why}: {remedy}" for point, why in missing.items()])
    if reasons:
        plans.check()
    measured = [point for point in lacking if point not in missing and wanted != "plan"]
    return [Choice(point, "measured", runs.definition(point)) for point in measured] + [
        Choice(point, "planned", plans.definition(point), reason, plans.gpu) for point, reason in reasons.items()
    ]


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

"""Studies that are written down: a YAML file of points."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError
from scaling.points import At, Kind, Point, Study
from scaling.workload import RecipeFile

from megatron_cgrpo.config import ConfigError
from megatron_cgrpo.config.explain import explain
from megatron_cgrpo.config.section import Section


class PointEntry(Section):
    """``x`` is null where points are no amounts; ``recipe`` is null where the study's is meant."""

    label: str
    x: float | None = Field(None, gt=0)
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()


class StudyEntry(Section):
    """Paths are relative to the file's directory."""

    name: str
    kind: Kind
    axis: str
    recipe: Path | None = None
    points: tuple[PointEntry, ...] = Field(min_length=1)


def read_study_file(path: Path) -> Study:
    """Raises ConfigError with every problem found."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entry = StudyEntry.model_validate(content)
    except OSError as error:
        raise ConfigError(f"--file {path}: cannot be read ({error.strerror}): name a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--file {path}: is no YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError([f"--file {path}: {problem}" for problem in explain(error)]) from error
    problems = [
        f"--file {path}: point {point.label}: {problem}"
        for point in entry.points
        for problem in _problems(entry, point)
    ]
    labels = [point.label for point in entry.points]
    problems += [
        f"--file {path}: label {name}: stands twice" for name in sorted({n for n in labels if labels.count(n) > 1})
    ]
    if problems:
        raise ConfigError(problems)
    return Study(entry.name, entry.kind, entry.axis, tuple(_at(path, entry, place) for place in range(len(labels))))


def _problems(study: StudyEntry, point: PointEntry) -> list[str]:
    found = []
    if (point.recipe or study.recipe) is None:
        found.append("recipe=null: nothing says what is trained: name a recipe, here or for the whole study")
    if point.x is None and study.kind != "compare":
        found.append(f"x=null: kind={study.kind} needs an amount for each point: give how many times the first it is")
    return found


def _at(path: Path, study: StudyEntry, place: int) -> At:
    entry = study.points[place]
    recipe = entry.recipe or study.recipe
    assert recipe is not None  # checked above
    work = RecipeFile(path.parent / recipe)
    point = Point(f"{study.name} {entry.label}", work, entry.overrides)
    return At(entry.label, float(place) if entry.x is None else entry.x, point)

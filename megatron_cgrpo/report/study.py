"""``study.json``: which runs a study is made of, which table each belongs to, and the paper's numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.section import Section
from megatron_cgrpo.observe.atomic import write_json
from megatron_cgrpo.report.methods import Method, Spread
from megatron_cgrpo.report.run_files import Run
from megatron_cgrpo.report.scores import PASS_AT_1, PASS_AT_8, REPAIRED
from megatron_cgrpo.report.tables import NOTHING, Cell, Table, number, spread, without_empty_columns

STUDY = "study.json"


class StudyRun(Section):
    """``directory`` is relative to the study's; ``failure`` says why the run did not finish, where it was tried."""

    seed: int
    directory: str
    command: tuple[str, ...]
    failure: str | None = None


class StudyArm(Section):
    """One method over seeds."""

    label: str
    runs: tuple[StudyRun, ...]


class StudyRow(Section):
    """``arm: null`` is the base model, before any training. ``paper`` has a number for each of the paper's columns."""

    label: str
    arm: str | None
    paper: tuple[float | None, ...] = ()


class StudyTable(Section):
    name: str
    title: str
    note: str = ""
    paper_columns: tuple[str, ...] = ()
    rows: tuple[StudyRow, ...]


class PassAtKCurve(Section):
    """``files`` hold ``pass_at_<k>`` of one model over seeds, relative to the study's directory."""

    label: str
    files: tuple[str, ...]


class Study(Section):
    """``rescue`` are files of ``mcgrpo rescue``, relative to the study's directory; a missing one has not been run.

    ``failures`` are sentences about files that could not be made.
    """

    title: str
    command: str
    arms: dict[str, StudyArm]
    tables: tuple[StudyTable, ...]
    rescue: tuple[str, ...] = ()
    pass_at_k: tuple[PassAtKCurve, ...] = ()
    failures: dict[str, str] = {}


def write_study(directory: Path, study: Study) -> None:
    write_json(directory / STUDY, study.model_dump(mode="json"))


def read_study(directory: Path) -> Study | None:
    """None where the directory is no study's. Raises ConfigError where its file is damaged."""
    path = directory / STUDY
    if not path.is_file():
        return None
    try:
        return Study.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {place}: {first['msg']}: write it again with tools/paper_study.py") from error


def arm_methods(study: Study, table: StudyTable, runs: dict[str, list[Run]]) -> list[Method]:
    """The arms of a table that have runs; ``runs`` by the name of the arm."""
    return [Method(row.label, {}, runs[row.arm]) for row in table.rows if row.arm is not None and runs.get(row.arm)]


def study_table(study: Study, table: StudyTable, runs: dict[str, list[Run]]) -> Table:
    """Every row that was planned, whether it has runs or not, with the paper's columns beside ours."""
    rows = []
    for row in table.rows:
        if row.arm is None:
            ours = _base_cells([run for found in runs.values() for run in found])
        else:
            ours = _arm_cells(Method(row.label, {}, runs.get(row.arm, [])), len(study.arms[row.arm].runs))
        rows.append([Cell(row.label), *ours, *(number(value, 2) for value in row.paper)])
    columns = ["method", "runs", "Pass@1 (%)", "Pass@8 (%)", "misconceptions repaired (%)", "Pass@1 by seed (%)"]
    columns += [f"paper: {name}" for name in table.paper_columns]
    return without_empty_columns(Table(table.name, table.title, columns, rows, table.note))


def _arm_cells(method: Method, planned: int) -> list[Cell]:
    scores = [spread(_spread([run.final(key) for run in method.runs])) for key in (PASS_AT_1, PASS_AT_8, REPAIRED)]
    by_seed = [f"{100 * value:.1f}" for run in method.runs if (value := run.final(PASS_AT_1)) is not None]
    done = len(method.finished)
    return [Cell(f"{done} of {planned}", done), *scores, Cell(", ".join(by_seed) or NOTHING)]


def _base_cells(runs: Sequence[Run]) -> list[Cell]:
    """One base model a seed, whatever was trained from it."""
    by_seed = {run.seed: run for run in runs if run.base(PASS_AT_1) is not None}
    scores = [spread(_spread([run.base(key) for run in by_seed.values()])) for key in (PASS_AT_1, PASS_AT_8, REPAIRED)]
    each = [f"{100 * value:.1f}" for _, run in sorted(by_seed.items()) if (value := run.base(PASS_AT_1)) is not None]
    return [Cell(NOTHING), *scores, Cell(", ".join(each) or NOTHING)]


def _spread(values: Sequence[float | None]) -> Spread | None:
    found = tuple(value for value in values if value is not None)
    return Spread(found) if found else None

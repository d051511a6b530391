"""``study.json``: which runs a study is made of, which table each belongs to, and the paper's numbers beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class StudyJob(Section):
    """``command`` as it would be typed; ``failure`` says why the job did not finish, where it was tried."""

    command: tuple[str, ...]
    failure: str | None = None


class StudyRun(Section):
    """``directory``, relative to the study's, is also the name of its job."""

    seed: int
    directory: str


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


class StudyScores(Section):
    """``files`` hold the scores of one model over seeds, relative to the study's directory."""

    label: str
    files: tuple[str, ...]


class Study(Section):
    """``commands`` made it, each a part of it; ``jobs`` are all that they consist of, by what each of them makes.

    ``rescue`` are files of ``mcgrpo rescue``, ``pass_at_k`` and ``self_critique`` those of ``mcgrpo eval``, relative to
    the study's directory; a missing one has not been run. ``notes`` stand below these three, by their names here.
    """

    title: str
    commands: tuple[str, ...]
    arms: dict[str, StudyArm]
    tables: tuple[StudyTable, ...]
    rescue: tuple[str, ...] = ()
    pass_at_k: tuple[StudyScores, ...] = ()
    self_critique: tuple[StudyScores, ...] = ()
    notes: dict[str, str] = {}
    jobs: dict[str, StudyJob] = {}

    def failure(self, name: str) -> str | None:
        """Why the job failed; None where it did not, or is none of the study's."""
        return self.jobs[name].failure if name in self.jobs else None


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
        raise ConfigError(
            f"{path}: {place}: {first['msg']}: restore it, or make the study in another directory"
        ) from error


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
    done = len(method.finished)
    return [Cell(f"{done} of {planned}", done), *_score_cells(method.runs, Run.final)]


def _base_cells(runs: Sequence[Run]) -> list[Cell]:
    """One base model a seed, whatever was trained from it."""
    by_seed = {run.seed: run for run in runs if run.base(PASS_AT_1) is not None}
    return [Cell(NOTHING), *_score_cells([by_seed[seed] for seed in sorted(by_seed)], Run.base)]


def _score_cells(runs: Sequence[Run], score: Callable[[Run, str], float | None]) -> list[Cell]:
    scores = [spread(Spread.of(score(run, key) for run in runs)) for key in (PASS_AT_1, PASS_AT_8, REPAIRED)]
    by_seed = [f"{100 * value:.1f}" for run in runs if (value := score(run, PASS_AT_1)) is not None]
    return [*scores, Cell(", ".join(by_seed) or NOTHING)]

"""What a report says, before it is HTML or Markdown."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cgrpo import __version__
from megatron_cgrpo.report.analyses import analysis_tables
from megatron_cgrpo.report.costs import cost_tables
from megatron_cgrpo.report.gather import Found, package_versions, warnings
from megatron_cgrpo.report.ledgers import ledger_tables
from megatron_cgrpo.report.methods import ABSENT, Method, differences, group_by_method, shown
from megatron_cgrpo.report.rescues import rescue_table
from megatron_cgrpo.report.scores import curve_table, results_table, runs_table, self_critique_table
from megatron_cgrpo.report.series import Figure, curve_figure, pass_at_k_figure, step_figure
from megatron_cgrpo.report.study import arm_methods, study_table
from megatron_cgrpo.report.tables import Cell, Table, noted

_CURVES = {
    "pass_at_1": ("Held-out Pass@1", "Pass@1", "eval.pass_at_1", 1.0),
    "repaired": ("Misconceptions repaired", "share", "eval.misconceptions_repaired", 1.0),
    "reward": ("Reward of initial responses", "mean reward", "reward.initial", 1.0),
    "refined": ("Critiqued questions that were refined", "share", "refinement.questions_refined", 1.0),
    "entropy_initial": ("Entropy of all initial responses", "nats per token", "entropy.initial", math.inf),
    "entropy_refined": (
        "Entropy of all refinements, under their critiques",
        "nats per token",
        "entropy.refined",
        math.inf,
    ),
    "entropy_rollout": ("Entropy of the initial responses that train", "nats per token", "entropy.rollout", math.inf),
    "entropy_refinement": ("Entropy of the refinements that train", "nats per token", "entropy.refinement", math.inf),
    "gradient_rollout": ("Gradient norm of initial responses", "norm", "gradient.rollout", math.inf),
    "gradient_refinement": ("Gradient norm of refinements", "norm", "gradient.refinement", math.inf),
}
_PASS_AT_K = "Pass@k"
_IN_STUDY_TABLES = ("pass_at_1", "entropy_initial")


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    name: str
    title: str
    tables: list[Table]
    figures: list[Figure]


@dataclass(frozen=True)
class RunConfig:
    """A run's resolved recipe: (key, value, whether methods differ in it)."""

    title: str
    settings: list[tuple[str, str, bool]]


@dataclass(frozen=True)
class Page:
    """``notices`` are sentences about what is missing, unfinished or mixed."""

    title: str
    notices: list[str]
    parts: list[Part]
    configs: list[RunConfig]
    commands: list[tuple[str, str]]
    versions: list[str]


def build_page(title: str | None, found: Found) -> Page:
    methods = group_by_method(found.runs)
    notes = {name: note for study in found.studies for name, note in study.notes.items()}
    curves = noted(curve_table(found.pass_at_k), notes.get("pass_at_k"))
    rescues = [noted(rescue_table(found.rescues), notes.get("rescue"))] if found.rescues else []
    criticised = noted(self_critique_table(found.self_critique), notes.get("self_critique"))
    parts = [
        *_study_parts(found),
        Part("results", "Results", _filled([results_table(methods)]), [] if found.studies else _curves("all", methods)),
        Part("pass_at_k", _PASS_AT_K, _filled([curves]), _pass_at_k(found)),
        Part("rescue", "Persistent failures", rescues, []),
        Part("self_critique", criticised.title, _filled([criticised]), []),
        Part("refinement", "Refinement and critiques", _filled(ledger_tables(methods)), []),
        Part("analysis", "What the texts show", _filled(analysis_tables(methods)), []),
        Part("cost", "Cost", _filled(cost_tables(methods)), []),
        Part("runs", "Runs", [runs_table(methods)], []),
        Part("differences", "Where the methods differ", _filled([_differences_table(methods)]), []),
    ]
    return Page(
        title=title or (found.studies[0].title if found.studies else "Runs of megatron_cgrpo"),
        notices=[*found.missing, *warnings(methods)],
        parts=[part for part in parts if part.tables or part.figures],
        configs=_configs(methods),
        commands=_commands(found, methods),
        versions=[f"megatron_cgrpo {__version__} (this report)", *_versions(methods)],
    )


def _study_parts(found: Found) -> list[Part]:
    parts = []
    for study, runs in zip(found.studies, found.arms, strict=True):
        for table in study.tables:
            methods = arm_methods(study, table, runs)
            figures = _curves(table.name, methods, _IN_STUDY_TABLES)
            parts.append(Part(table.name, table.title, [study_table(study, table, runs)], figures))
    return parts


def _curves(prefix: str, methods: Sequence[Method], names: Sequence[str] = tuple(_CURVES)) -> list[Figure]:
    figures = [
        step_figure(f"{prefix}_{name}", title, label, methods, key, highest)
        for name, (title, label, key, highest) in _CURVES.items()
        if name in names
    ]
    return [figure for figure in (*figures, pass_at_k_figure(f"{prefix}_pass_at_k", methods)) if figure is not None]


def _pass_at_k(found: Found) -> list[Figure]:
    figure = curve_figure("pass_at_k", _PASS_AT_K, found.pass_at_k)
    return [] if figure is None else [figure]


def _filled(tables: Sequence[Table]) -> list[Table]:
    """Those that say more than the names of their rows."""
    return [table for table in tables if len(table.columns) > 1 and table.rows]


def _differences_table(methods: Sequence[Method]) -> Table:
    rows = [
        [Cell(key), *(Cell(shown(method.config.get(key, ABSENT))) for method in methods)]
        for key in differences(methods)
    ]
    note = "Settings that are not the same in all methods; seeds and run directories are left out."
    return Table("differences", "Settings", ["setting", *(method.label for method in methods)], rows, note)


def _configs(methods: Sequence[Method]) -> list[RunConfig]:
    different = set(differences(methods))
    return [
        RunConfig(
            f"{method.label}, seed {run.seed}: {run.directory}",
            [(key, shown(value), key in different) for key, value in run.config.items()],
        )
        for method in methods
        for run in method.runs
    ]


def _commands(found: Found, methods: Sequence[Method]) -> list[tuple[str, str]]:
    """(what it makes, command). A resolved recipe gives the same run again, in another directory."""
    commands = [(study.title, command) for study in found.studies for command in study.commands]
    for study in found.studies:
        runs = {run.directory for arm in study.arms.values() for run in arm.runs}
        others = {name: job.command for name, job in sorted(study.jobs.items()) if name not in runs}
        commands += [(name, shlex.join(command)) for name, command in others.items()]
    for method in methods:
        for run in method.runs:
            again = shlex.quote(f"run.dir={_again(run.directory)}")
            recipe = shlex.quote(str(run.directory / "config.yaml"))
            commands.append((f"{method.label}, seed {run.seed}", f"mcgrpo train {recipe} {again}"))
    return commands


def _again(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}_again")


def _versions(methods: Sequence[Method]) -> list[str]:
    return [f"{package} {', '.join(found)}" for package, found in sorted(package_versions(methods).items())]

"""From the paths on the command line to runs, studies and a list of what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.report.methods import Method
from megatron_cgrpo.report.run_files import Run, read_object, read_run
from megatron_cgrpo.report.study import Study, read_study


@dataclass(frozen=True)
class Found:
    """``arms[i]`` has the runs of ``studies[i]`` by arm; ``missing`` are sentences about what is not there.

    ``pass_at_k`` has the scores of evaluations with many samples by label, ``self_critique`` those with critiques.
    """

    runs: list[Run] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    arms: list[dict[str, list[Run]]] = field(default_factory=list)
    rescues: list[dict[str, Any]] = field(default_factory=list)
    pass_at_k: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    self_critique: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def gather(paths: Sequence[Path]) -> Found:
    """Run directories and studies' directories, each once. Raises ConfigError for a path that is neither."""
    found = Found()
    problems: list[str] = []
    seen: dict[Path, Run] = {}
    for path in paths:
        try:
            study = read_study(path)
            if study is None:
                _run(path, found, seen)
            else:
                _study(path, study, found, seen)
        except ConfigError as error:
            problems += error.problems
    if len(found.studies) > 1:
        problems.append(f"RUN: {len(found.studies)} studies are named: report each of them by itself")
    if problems:
        raise ConfigError(problems)
    found.rescues.extend(run.rescue for run in found.runs if run.rescue is not None)
    if not found.runs and not found.rescues:
        raise ConfigError("RUN: no run has started yet: train one, or wait until the study has begun its first")
    return found


def warnings(methods: Sequence[Method]) -> list[str]:
    """What a reader of the means has to know: runs that are not in them, seeds that count twice, mixed versions."""
    sentences = []
    for method in methods:
        sentences += [f"{run.directory} ({method.label}): {run.state}." for run in method.runs if not run.finished]
        seeds = [run.seed for run in method.runs]
        for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            sentences.append(f"{method.label}: seed {seed} occurs {seeds.count(seed)} times, and counts as often.")
    for package, versions in sorted(package_versions(methods).items()):
        if len(versions) > 1:
            sentences.append(f"{package}: the runs used different versions: {', '.join(versions)}.")
    return sentences


def package_versions(methods: Sequence[Method]) -> dict[str, list[str]]:
    """As the runs' checkpoints name them."""
    versions: dict[str, set[str]] = {}
    for run in (run for method in methods for run in method.runs):
        for package, version in run.packages.items():
            versions.setdefault(package, set()).add(version)
    return {package: sorted(found) for package, found in versions.items()}


def _run(path: Path, found: Found, seen: dict[Path, Run]) -> Run:
    key = path.resolve()
    if key not in seen:
        seen[key] = read_run(path)
        found.runs.append(seen[key])
    return seen[key]


def _study(directory: Path, study: Study, found: Found, seen: dict[Path, Run]) -> None:
    arms: dict[str, list[Run]] = {}
    for name, arm in study.arms.items():
        arms[name] = []
        for planned in arm.runs:
            path = directory / planned.directory
            started = (path / "config.yaml").is_file()
            if started:
                arms[name].append(_run(path, found, seen))
            failure = study.failure(planned.directory)
            if failure is not None or not started:
                reason = "has not been run" if failure is None else f"failed: {failure}"
                found.missing.append(f"{path} ({arm.label}): {reason}.")
    found.rescues.extend(_files(directory, study.rescue, study, found))
    for scores, into in ((study.pass_at_k, found.pass_at_k), (study.self_critique, found.self_critique)):
        for model in scores:
            into.setdefault(model.label, []).extend(_files(directory, model.files, study, found))
    shown = {run.directory for arm in study.arms.values() for run in arm.runs} | set(_result_files(study))
    others = {name: job.failure for name, job in study.jobs.items() if name not in shown and job.failure is not None}
    found.missing.extend(f"{directory / name}: failed: {failure}." for name, failure in others.items())
    found.studies.append(study)
    found.arms.append(arms)


def _result_files(study: Study) -> list[str]:
    return [*study.rescue, *(file for model in (*study.pass_at_k, *study.self_critique) for file in model.files)]


def _files(directory: Path, names: Sequence[str], study: Study, found: Found) -> list[dict[str, Any]]:
    """Those that are there; of the others a sentence is kept."""
    contents = []
    for name in names:
        content = read_object(directory / name)
        if content is not None:
            contents.append(content)
        elif (failure := study.failure(name)) is not None:
            found.missing.append(f"{directory / name}: failed: {failure}.")
        else:
            found.missing.append(f"{directory / name}: has not been run.")
    return contents

"""Runs of one method: the same recipe but for seeds and where it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Self

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.layers import read_preset
from megatron_cgrpo.report.run_files import SEED, Flat, Run, flatten

# What tells runs of one method apart, and what changes nothing that a run computes.
_SEEDS = {SEED, "task.seed", "warm_start.seed"}
_FREE = ("run.", "observe.", "checkpoint.", "warm_start.cache_dir")
_METHOD_SECTIONS = ("algorithm.", "critic.", "reward.")
_PRESET = "algorithm.preset"
ABSENT = "(absent)"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation for a single one."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Of those that are there; None without any."""
        found = tuple(value for value in values if value is not None)
        return cls(found) if found else None

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def std(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Method:
    label: str
    config: Flat
    runs: list[Run]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    def spread(self, figure: Callable[[Run], float | None]) -> Spread | None:
        """``figure`` over the runs that have it."""
        return Spread.of(map(figure, self.runs))


def group_by_method(runs: Sequence[Run]) -> list[Method]:
    """In the order in which methods first occur; each has a label of its own."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(json.dumps(method_config(run), sort_keys=True, default=str), []).append(run)
    groups = [sorted(group, key=lambda run: run.seed) for group in grouped.values()]
    configs = [method_config(group[0]) for group in groups]
    labels = [group[0].label or _derived_label(config) for group, config in zip(groups, configs, strict=True)]
    return [
        Method(_distinct(label, config, labels, configs), config, group)
        for label, config, group in zip(labels, configs, groups, strict=True)
    ]


def method_config(run: Run) -> Flat:
    """The recipe without what tells seeds apart. A path with ``seed_<n>`` of the run's own seed is one of them."""
    own = f"seed_{run.seed}"
    return {
        key: value.replace(own, "seed_*") if isinstance(value, str) else value
        for key, value in run.config.items()
        if key not in _SEEDS and not key.startswith(_FREE)
    }


def differences(methods: Sequence[Method]) -> list[str]:
    """The keys whose values are not the same in all methods."""
    return _differing([method.config for method in methods])


def shown(value: Any) -> str:
    """A setting as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _differing(configs: Sequence[Flat]) -> list[str]:
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({shown(config.get(key, ABSENT)) for config in configs}) > 1]


def _derived_label(config: Flat) -> str:
    """The preset, and what the recipe sets differently."""
    preset = str(config.get(_PRESET, "no preset"))
    try:
        stated = flatten(read_preset(preset))
    except ConfigError:  # a preset of another version
        return preset
    overrides = [
        _setting(key, config)
        for key, value in stated.items()
        if key.startswith(_METHOD_SECTIONS) and key in config and config[key] != value
    ]
    return ", ".join([preset, *overrides])


def _distinct(label: str, config: Flat, labels: Sequence[str], configs: Sequence[Flat]) -> str:
    """``label``, with the settings that tell it from other methods of the same label."""
    same = [other for name, other in zip(labels, configs, strict=True) if name == label]
    return ", ".join([label, *(_setting(key, config) for key in _differing(same))])


def _setting(key: str, config: Flat) -> str:
    return f"{key.removeprefix('algorithm.')}={shown(config.get(key, ABSENT))}"

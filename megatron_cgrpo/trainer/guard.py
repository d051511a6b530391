"""Notices that a run collapses: entropy, KL or mismatch beyond a threshold, or nothing that trains, step after step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.config.train import GuardConfig

IDLE_STEPS = 5
"""So many times the patience without anything that trains is an alarm: a small batch may well be solved for a while."""

_STOPPED = "guard.action=stop ended the run: start another with the remedy, or go on with --resume guard.action=warn"


_DISAGREE = {
    "meaning": "engines and trainer disagree about the policy",
    "remedy": "set algorithm.correction.mode=sequence_mask or model.dtype=float32, or lower optimizer.lr",
}
_STALE = {
    "meaning": "the policy is far from the older ones that sampled, or engines and trainer disagree about it "
    "(mismatch.kl holds both)",
    "remedy": "lower train.staleness or optimizer.lr, or raise guard.mismatch_above; where train.staleness=0 has it "
    "too, set model.dtype=float32",
}


_ROUNDED = {
    "meaning": "engines in FP8 sample from a rounded policy, whose distance from the trainer's is part of this figure",
    "remedy": "where it was so from the first step on, raise guard.mismatch_above; where it has grown, set "
    "rollout.quantization=none and rollout.kv_cache_dtype=auto, or lower optimizer.lr",
}


class Collapsed(RunError):
    """The guard ended the run; what was trained so far is in a checkpoint."""


@dataclass(frozen=True)
class _Watch:
    """``limit`` says the threshold in words, where the recipe has it."""

    name: str
    metric: str
    crossed: Callable[[float], bool]
    patience: int
    limit: str
    meaning: str
    remedy: str


class CollapseGuard:
    """Counts the steps in a row that are beyond each threshold.

    ``lines`` are those that an interrupted run has written: the count goes on where it stood, and a threshold that was
    changed since holds for them too. A step without the figure neither adds to a count nor ends it.
    """

    def __init__(
        self, config: GuardConfig, staleness: int, lines: Iterable[Mapping[str, float]], *, fp8: bool = False
    ) -> None:
        """``staleness`` is the run's, and ``fp8`` whether its engines compute in it: what it means that trainer and
        engines differ depends on both."""
        self._action = config.action
        self._watches = [] if config.action == "off" else _watches(config, staleness, fp8)
        self._counts = {watch.name: 0 for watch in self._watches}
        self._latest: dict[str, float] = {}
        for line in lines:
            self.watch(line)

    def watch(self, line: Mapping[str, float]) -> dict[str, float]:
        """``guard.<name>``: for how many steps in a row, with this one, the threshold has been crossed."""
        self._latest = {watch.name: line[watch.metric] for watch in self._watches if watch.metric in line}
        for watch in self._watches:
            if watch.name in self._latest:
                crossed = watch.crossed(self._latest[watch.name])
                self._counts[watch.name] = self._counts[watch.name] + 1 if crossed else 0
        return {f"guard.{name}": count for name, count in self._counts.items()}

    def alarms(self) -> list[str]:
        """What the latest step gives reason to say: again after as many further steps, where the run goes on.

        Raises Collapsed where the guard is to stop the run.
        """
        stops = self._action == "stop"
        due = [watch for watch in self._watches if watch.name in self._latest and self._due(watch, stops)]
        sentences = [self._sentence(watch) for watch in due]
        if stops and sentences:
            raise Collapsed("\n".join([*sentences, _STOPPED]))
        return sentences

    def _due(self, watch: _Watch, stops: bool) -> bool:
        count = self._counts[watch.name]
        return count >= watch.patience if stops else count > 0 and count % watch.patience == 0

    def _sentence(self, watch: _Watch) -> str:
        return (
            f"{watch.metric}={self._latest[watch.name]:.4g}:{watch.limit} for {self._counts[watch.name]} steps: "
            f"{watch.meaning}: {watch.remedy}"
        )


def _watches(config: GuardConfig, staleness: int, fp8: bool) -> list[_Watch]:
    """Those that have a threshold, and that something trains."""
    idle = _Watch(
        "idle",
        "tokens.update",
        lambda tokens: tokens == 0,
        IDLE_STEPS * config.patience,
        limit="",
        meaning="nothing trained",
        remedy="see reward.initial: where all is solved give harder problems, else easier ones or a critic",
    )
    thresholds = [
        _below(
            "entropy",
            "entropy.initial",
            config.entropy_below,
            config.patience,
            meaning="the policy hardly samples anything new",
            remedy="lower optimizer.lr, or set algorithm.entropy.coef",
        ),
        _above(
            "kl",
            "kl.rollout",
            config.kl_above,
            config.patience,
            meaning="the policy is far from the model it started as",
            remedy="lower optimizer.lr, or raise algorithm.kl.coef",
        ),
        _above(
            "mismatch",
            "mismatch.kl",
            config.mismatch_above,
            config.patience,
            **(_STALE if staleness else _ROUNDED if fp8 else _DISAGREE),
        ),
    ]
    return [*(watch for watch in thresholds if watch is not None), idle]


def _below(
    name: str, metric: str, threshold: float | None, patience: int, *, meaning: str, remedy: str
) -> _Watch | None:
    if threshold is None:
        return None
    limit = f" below guard.{name}_below={threshold:g}"
    return _Watch(name, metric, lambda value: value < threshold, patience, limit, meaning, remedy)


def _above(
    name: str, metric: str, threshold: float | None, patience: int, *, meaning: str, remedy: str
) -> _Watch | None:
    if threshold is None:
        return None
    limit = f" above guard.{name}_above={threshold:g}"
    return _Watch(name, metric, lambda value: value > threshold, patience, limit, meaning, remedy)

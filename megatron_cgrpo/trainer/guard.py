"""Notices that a policy collapses: entropy, KL or mismatch beyond a threshold for several steps in a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.config.train import GuardConfig

_STOPPED = "guard.action=stop ended the run: start another with the remedy, or go on with --resume guard.action=warn"


class Collapsed(RunError):
    """The guard ended the run; what was trained so far is in a checkpoint."""


@dataclass(frozen=True)
class _Watch:
    name: str
    metric: str
    threshold: float | None
    below: bool
    meaning: str
    remedy: str

    @property
    def setting(self) -> str:
        return f"guard.{self.name}_{'below' if self.below else 'above'}"

    def crossed(self, value: float) -> bool:
        if self.threshold is None:
            return False
        return value < self.threshold if self.below else value > self.threshold


class CollapseGuard:
    """Counts the steps in a row that are beyond each threshold.

    ``lines`` are those that an interrupted run has written: the count goes on where it stood, and a threshold that was
    changed since holds for them too. A step without the figure neither adds to a count nor ends it.
    """

    def __init__(self, config: GuardConfig, lines: Iterable[Mapping[str, float]]) -> None:
        self._action, self._patience = config.action, config.patience
        self._watches = [] if config.action == "off" else _watches(config)
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
        """What the latest step gives reason to say: again after ``patience`` further steps, where the run goes on.

        Raises Collapsed where the guard is to stop the run.
        """
        stops = self._action == "stop"
        due = [w for w in self._watches if w.name in self._latest and self._due(self._counts[w.name], stops)]
        sentences = [self._sentence(watch) for watch in due]
        if stops and sentences:
            raise Collapsed("\n".join([*sentences, _STOPPED]))
        return sentences

    def _due(self, count: int, stops: bool) -> bool:
        return count >= self._patience if stops else count > 0 and count % self._patience == 0

    def _sentence(self, watch: _Watch) -> str:
        side = "below" if watch.below else "above"
        return (
            f"{watch.metric}={self._latest[watch.name]:.4g}: {side} {watch.setting}={watch.threshold:g} for "
            f"{self._counts[watch.name]} steps: {watch.meaning}: {watch.remedy}"
        )


def _watches(config: GuardConfig) -> list[_Watch]:
    """Those that have a threshold."""
    watches = [
        _Watch(
            "entropy",
            "entropy.rollout",
            config.entropy_below,
            below=True,
            meaning="the policy hardly samples anything new",
            remedy="lower optimizer.lr, or set algorithm.entropy.coef",
        ),
        _Watch(
            "kl",
            "kl.rollout",
            config.kl_above,
            below=False,
            meaning="the policy is far from the model it started as",
            remedy="lower optimizer.lr, or raise algorithm.kl.coef",
        ),
        _Watch(
            "mismatch",
            "mismatch.kl",
            config.mismatch_above,
            below=False,
            meaning="engines and trainer disagree about the policy",
            remedy="set algorithm.correction.mode=sequence_mask or model.dtype=float32, or lower optimizer.lr",
        ),
    ]
    return [watch for watch in watches if watch.threshold is not None]

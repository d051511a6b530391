"""TensorBoard holds what the metrics stream holds; W&B is refused clearly where it is missing."""

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_cgrpo.config import ConfigError, Recipe
from megatron_cgrpo.observe.sinks import open_sinks


def recipe(tmp_path: Path, **observe: object) -> Recipe:
    return Recipe.model_validate({"run": {"dir": str(tmp_path)}, "observe": observe})


def scalars(tmp_path: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_the_steps_once_also_after_resuming(tmp_path: Path) -> None:
    for start, value in ((1, 0.5), (2, 0.25)):
        (sink,) = open_sinks(recipe(tmp_path), next_step=start)
        for step in range(start, start + 3):
            sink.write({"step": step, "loss.total": value, "lr": value})
        sink.close()
    assert scalars(tmp_path, "loss/total") == [(1, 0.5), (2, 0.25), (3, 0.25), (4, 0.25)]
    assert scalars(tmp_path, "lr") == scalars(tmp_path, "loss/total")


def test_no_sink_is_opened_unasked(tmp_path: Path) -> None:
    assert open_sinks(recipe(tmp_path, tensorboard=False), next_step=1) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_wandb_project_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"observe.wandb_project=mine: .*megatron_cgrpo\[wandb\]"):
        open_sinks(recipe(tmp_path, wandb_project="mine"), next_step=1)

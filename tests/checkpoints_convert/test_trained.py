"""A training run's checkpoint is inspected, exported and verified as a converted one is."""

from __future__ import annotations

from pathlib import Path

import pytest
from pairs import PAIRS, WEIGHTS, check_of, failed
from test_inspect import parameters, without_data
from trained import save_trained

from checkpoints_convert.inspect_checkpoint import inspect
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from checkpoints_convert.verify import verify
from megatron_cgrpo.config.recipe import Recipe


@pytest.fixture(scope="module")
def step(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained(originals / "moe", tmp_path_factory.mktemp("run"))


def test_it_is_no_longer_the_model_that_it_started_from(originals: Path, step: Path) -> None:
    report = verify(originals / "moe", step)
    assert failed(report) == {"contents"}
    assert check_of(report, "Megatron since conversion").status == "skipped"


def test_it_is_the_model_that_was_exported_from_it_in_another_precision(step: Path, tmp_path: Path) -> None:
    megatron_to_hf(step, tmp_path / "mine", Options.parse("bf16", 1))
    report = verify(tmp_path / "mine", step)
    assert report.passed, report
    content = bytearray((tmp_path / "mine" / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / "mine" / WEIGHTS).write_bytes(content)
    assert check_of(verify(tmp_path / "mine", step), "contents").status == "failed"


def test_inspect_tells_step_layout_and_training_state(step: Path) -> None:
    without_data(step)
    for directory in (step, step / "policy"):
        found = inspect(directory)
        assert (found.kind, found.step) == ("training", 20)
        assert found.parameters == parameters(PAIRS["moe"][0])
        assert found.dtypes["float32"].elements == found.parameters
        assert found.layout == {"source": "manifest.json", **Recipe().parallel.model_dump(mode="json")}
        assert found.state == {"optimizer": True, "schedule": True, "random": True}
        assert found.packages["megatron-core"]
        assert found.notes == []

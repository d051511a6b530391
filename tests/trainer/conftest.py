"""One uninterrupted run, which several files compare theirs with."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import Run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def cache(folder: Path) -> Path:
    return folder / "cache"


@pytest.fixture(scope="session")
def uninterrupted(folder: Path, cache: Path) -> Run:
    run = Run(folder, cache, "uninterrupted")
    run.finish()
    return run

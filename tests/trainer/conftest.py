"""One uninterrupted run, which several files compare theirs with, and whose base model most of them start from."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_runs import STARTED, Files, Run


@pytest.fixture(autouse=True)
def runs_end_with_their_test() -> Iterator[None]:
    """What a failed test left behind would take the time of all others."""
    yield
    while STARTED:
        STARTED.pop().kill()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """With two engines. It is made once for all workers of the session: the first to ask makes it, the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    shared = root / "uninterrupted"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "finished").exists():
            shutil.rmtree(shared / "run", ignore_errors=True)  # of a worker in which it failed
            Run(shared, shared / "cache", "run", "rollout.engines=2").finish()
            [model] = (shared / "cache").iterdir()
            (shared / "finished").write_text(model.name)
    return Files(shared / "run")


@pytest.fixture(scope="session")
def cache(uninterrupted: Files) -> Path:
    """Holds the base model of that run, and those of the runs that the tests start."""
    return uninterrupted.directory.parent / "cache"


@pytest.fixture(scope="session")
def base(uninterrupted: Files, cache: Path) -> Path:
    """That base model; other runs add theirs beside it."""
    return cache / (cache.parent / "finished").read_text()

"""Predicted differences of memory against those that real ranks on CPUs show in their resident peaks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))

from plan_resident import CASES, measured_mib, predicted_mib

NAMED = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def base() -> tuple[float, float]:
    """(predicted, measured) MiB."""
    return both("one rank")


def both(name: str) -> tuple[float, float]:
    return predicted_mib(NAMED[name], 0), measured_mib(NAMED[name])[0]


@pytest.mark.parametrize("name", ["twice the layers", "twice the vocabulary"])
def test_what_grows_grows_as_predicted(base: tuple[float, float], name: str) -> None:
    """Each adds more than 100 MiB, where a process's own memory moves by a few."""
    predicted, measured = (grown - before for grown, before in zip(both(name), base, strict=True))
    assert predicted > 100
    assert predicted == pytest.approx(measured, rel=0.15)

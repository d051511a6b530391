"""The rollout files of a run, read back line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""One group, as ``observe.rollouts`` writes it."""

_NEEDED = frozenset({"step", "id", "prompt", "answer", "failed", "responses", "refinements", "critique_failures"})


def rollout_files(run: Path) -> dict[int, Path]:
    """step → ``rollouts/step_<step>.jsonl``, in order."""
    return {int(path.stem.removeprefix("step_")): path for path in sorted((run / "rollouts").glob("step_*.jsonl"))}


def read_rollouts(run: Path) -> Iterator[Line]:
    """Every group that the policy answered, in the order of the steps; reference solutions are no answers.

    Raises ValueError naming file and line where one is damaged, or lacks what is read here.
    """
    for path in rollout_files(run).values():
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = json.loads(text)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: is not JSON: restore the file or remove it") from error
                if missing := sorted(_NEEDED - line.keys()):
                    raise ValueError(
                        f"{path}, line {number}: lacks {', '.join(missing)}: use the version that wrote the run"
                    )
                if any(response["cause"] != "solution" for response in line["responses"]):
                    yield line


def is_correct(sample: Line) -> bool:
    """By the verifier, also where a critic's conclusion rewarded."""
    return bool(sample["cause"] == "correct")


def is_unverified(sample: Line) -> bool:
    """The verifier failed on it."""
    return str(sample["cause"]).startswith("error:")


def share(part: float, whole: float) -> dict[str, float]:
    """``{"share": part / whole}``, or nothing where there is no whole: a figure without data has no key."""
    return {"share": part / whole} if whole else {}


def keyed(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}.{key}": value for key, value in figures.items()}

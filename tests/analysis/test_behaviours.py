"""The rules against hand-labelled passages: how much of what they find is right, and how much they find."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from megatron_cgrpo.analysis.behaviours import BEHAVIOURS, DEFINITIONS, find_behaviours, is_prose

LABELLED: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "labelled_behaviours.jsonl").read_text(encoding="utf-8").splitlines()
]


def measured(split: str) -> dict[str, tuple[int, int, int]]:
    """behaviour → (found and there, found and not there, there and not found)."""
    counts = {}
    for name in BEHAVIOURS:
        pairs = [
            (name in find_behaviours(row["text"]), name in row["labels"]) for row in LABELLED if row["split"] == split
        ]
        counts[name] = tuple(pairs.count(pair) for pair in ((True, True), (True, False), (False, True)))
    return counts


@pytest.mark.parametrize(("split", "recall"), [("tuning", Fraction(1)), ("held_out", Fraction(37, 43))])
def test_precision_and_recall_are_those_of_the_documentation(split: str, recall: Fraction) -> None:
    counts = measured(split)
    right, false, missed = (sum(column) for column in zip(*counts.values(), strict=True))
    assert false == 0, "precision 1"
    assert Fraction(right, right + missed) == recall
    assert all(found >= 4 for found, _, _ in counts.values()), "every behaviour is tested"


def test_the_labels_are_of_known_behaviours_and_a_third_of_the_passages_has_none_of_them() -> None:
    assert {label for row in LABELLED for label in row["labels"]} == set(BEHAVIOURS) == set(DEFINITIONS)
    assert sum(not row["labels"] for row in LABELLED) >= 20
    assert len({row["text"] for row in LABELLED}) == len(LABELLED)


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("7*8=6;6-9=7;7+4=1;\\boxed{1}", False),
        ("$\\frac{\\alpha\\beta}{\\gamma}\\text{where these are words}$ \\boxed{\\sqrt{2}}", False),
        ("", False),
        ("The sum of both numbers is 7.", True),
    ],
)
def test_formulas_are_no_prose(text: str, prose: bool) -> None:
    assert is_prose(text) == prose


@pytest.mark.parametrize(
    "repeated", ["to get ", "start by the ", "plug it ", "could be ", "edge case ", "in order to "]
)
def test_a_long_response_that_almost_matches_does_not_hang(repeated: str) -> None:
    """Patterns that backtrack without bound would not come to an end here."""
    assert find_behaviours(repeated * 20_000) == frozenset()

"""The paper's Table 1: how many persistent failures each kind of critique rescues (files of ``mcgrpo rescue``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.report.methods import Spread
from megatron_cgrpo.report.tables import NOTHING, Cell, Table, number, spread, without_empty_columns

# arXiv 2506.03106, Table 1: valid refinements and questions refined, in per cent.
PAPER = {"indicative": (2.09, 7.05), "indicative_gt": (1.98, 6.88), "cot": (36.47, 55.37)}
PAPER_FAILED = 29.07
_COUNTS = ("attempts", "refinements", "valid", "supported", "questions_refined")


def rescue_table(results: Sequence[dict[str, Any]]) -> Table:
    """One row a kind of critique: mean ± sample standard deviation over the files, in per cent, and pooled counts.

    Raises ConfigError where a file lacks a count.
    """
    grouped: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for result in results:
        for kind, counts in _checked(result).items():
            grouped.setdefault(_row_name(kind, result), []).append((result, counts))
    rows = [_row(name, found) for name, found in grouped.items()]
    failed = Spread(tuple(result["failed"] / result["questions"] for result in results))
    note = (
        f"Questions that fail on every sample: {spread(failed).text} % (paper: {PAPER_FAILED} %). Per cent, mean ± "
        "sample standard deviation over seeds; valid refinements per failed answer, also those whose critique failed. "
        "Supported: the steps follow, and do not only copy the critique's answer."
    )
    columns = ["critique", "files", "valid refinements", "paper (valid)", "questions refined", "paper (questions)"]
    columns += ["of the valid, supported", "valid / refinements / failed answers", "refined / failed questions"]
    return without_empty_columns(Table("rescue", "Table 1: persistent failures rescued", columns, rows, note))


def _row(name: str, found: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[Cell]:
    valid, refinements, attempts = (
        sum(counts[key] for _, counts in found) for key in ("valid", "refinements", "attempts")
    )
    refined, failed = sum(counts["questions_refined"] for _, counts in found), sum(r["failed"] for r, _ in found)
    paper = PAPER.get(name.partition(",")[0])
    return [
        Cell(name),
        number(len(found)),
        _share(found, "valid", "attempts"),
        Cell(NOTHING) if paper is None else number(paper[0], 2),
        spread(_spread([(counts["questions_refined"], result["failed"]) for result, counts in found])),
        Cell(NOTHING) if paper is None else number(paper[1], 2),
        _share(found, "supported", "valid"),
        Cell(f"{valid}/{refinements}/{attempts}", valid),
        Cell(f"{refined}/{failed}", refined),
    ]


def _row_name(kind: str, result: dict[str, Any]) -> str:
    """``cot`` critiques differ by who writes them, and any kind by who refines."""
    parts = [kind]
    if kind == "cot" and result.get("source", "program") != "program":
        parts.append(f"from {result['source']}")
    if result.get("refiner", "policy") != "policy":
        parts.append(f"refined by {result['refiner']}")
    if result.get("checkpoint"):
        parts.append("after training")
    return ", ".join(parts)


def _share(found: Sequence[tuple[dict[str, Any], dict[str, Any]]], part: str, whole: str) -> Cell:
    return spread(_spread([(counts[part], counts[whole]) for _, counts in found]))


def _spread(pairs: Sequence[tuple[int, int]]) -> Spread | None:
    return Spread.of(part / whole for part, whole in pairs if whole)


def _checked(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    kinds = result.get("kinds")
    counted = isinstance(result.get("questions"), int) and isinstance(result.get("failed"), int)
    if not (counted and isinstance(kinds, dict) and all(key in kinds[kind] for kind in kinds for key in _COUNTS)):
        raise ConfigError("rescue file: lacks counts: write it again with `mcgrpo rescue … --out FILE.json`")
    return kinds

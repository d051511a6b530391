"""Tables as records, which HTML and Markdown both show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from megatron_cgrpo.report.methods import Method, Spread
from megatron_cgrpo.report.run_files import Run

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """``value`` is what sorting compares: None sorts after every number."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """``rows[i][j]`` stands below ``columns[j]``; the first column names the row."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""

    @property
    def numeric(self) -> list[bool]:
        """By column: whether any row has a value there."""
        return [any(row[j].value is not None for row in self.rows) for j in range(len(self.columns))]


def number(value: float | None, digits: int = 0, scale: float = 1.0) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{value * scale:,.{digits}f}", value)


def spread(found: Spread | None, digits: int = 1, scale: float = 100.0) -> Cell:
    """Mean ± sample standard deviation; shares as percentages unless ``scale`` says otherwise."""
    if found is None:
        return Cell(NOTHING)
    std = "" if found.std is None else f" ± {found.std * scale:,.{digits}f}"
    return Cell(f"{found.mean * scale:,.{digits}f}{std}", found.mean)


def without_empty_columns(table: Table) -> Table:
    """Less the columns in which no row has anything."""
    kept = [0] + [j for j in range(1, len(table.columns)) if any(row[j].text != NOTHING for row in table.rows)]
    return Table(
        table.name,
        table.title,
        [table.columns[j] for j in kept],
        [[row[j] for j in kept] for row in table.rows],
        table.note,
    )


def noted(table: Table, note: str | None) -> Table:
    """With ``note`` after what stands below the table."""
    return replace(table, note=f"{table.note} {note}".strip()) if note else table


def spread_table(
    name: str,
    title: str,
    methods: Sequence[Method],
    columns: Mapping[str, str],
    figure: Callable[[str, Run], float | None],
    note: str,
    scale: float = 100.0,
    digits: int = 1,
) -> Table:
    """A row a method: the spread over its runs of ``figure(key, run)`` for every key of ``columns``, by its heading."""
    rows = [
        [Cell(method.label), *(spread(method.spread(partial(figure, key)), digits, scale) for key in columns)]
        for method in methods
    ]
    return without_empty_columns(Table(name, title, ["method", *columns.values()], rows, note))


def markdown(table: Table) -> str:
    """A pipe table; characters that Markdown or HTML would take for their own are escaped."""
    rule = "|".join("---:" if numeric else "---" for numeric in table.numeric)
    lines = [_line(table.columns), f"|{rule}|"]
    return "\n".join([*lines, *(_line([cell.text for cell in row]) for row in table.rows)])


def escaped(text: str) -> str:
    """For running Markdown text and table cells."""
    for character in "\\`*_[]|<>&":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"

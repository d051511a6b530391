"""``summary.json`` and the table that ends a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Group
from rich.table import Table

from megatron_cgrpo.observe.atomic import write_json

REQUIRED = (
    "base.pass_at_1",
    "base.pass_at_8",
    "trained.pass_at_1",
    "trained.pass_at_8",
    "refinement.questions_refined",
    "misconceptions.repaired",
)
FAMILIES = ("seconds.", "tokens.")
COSTS = {"prompt_tokens": ",.0f", "tokens": ",.0f", "seconds": ",.1f", "device_seconds": ",.1f"}
Summary = Mapping[str, int | float | None]


def write_summary(path: Path, summary: Summary) -> None:
    """Write the flat summary; null stands for what a task or method does not have.

    Raises ValueError naming the keys that are missing.
    """
    missing = [key for key in REQUIRED if key not in summary]
    missing += [f"{family}*" for family in FAMILIES if not any(key.startswith(family) for key in summary)]
    if missing:
        raise ValueError(f"summary lacks {', '.join(missing)}: add them")
    write_json(path, dict(summary))


def summary_table(summary: Summary) -> Group:
    """Base against trained, what refinement did, where seconds and tokens went, and what each source of cost took."""
    return Group(_results(summary), _costs(summary)) if "cost.compute" in summary else Group(_results(summary))


def _results(summary: Summary) -> Table:
    table = Table(title="Result", title_justify="left")
    table.add_column("")
    table.add_column("base", justify="right")
    table.add_column("trained", justify="right")
    for key in sorted((key for key in summary if key.startswith("trained.")), key=_order):
        name = key.removeprefix("trained.")
        table.add_row(_readable(name), _share(summary.get(f"base.{name}")), _share(summary[key]))
    table.add_section()
    table.add_row("questions refined", "", _share(summary["refinement.questions_refined"]))
    for family, unit in (("seconds.", "s"), ("tokens.", "")):
        table.add_section()
        for key in sorted(key for key in summary if key.startswith(family)):
            value = summary[key]
            amount = "-" if value is None else f"{value:,.1f} {unit}" if unit else f"{value:,.0f}"
            table.add_row(key.replace(".", ": ").replace("_", " "), "", amount)
    return table


def _costs(summary: Summary) -> Table:
    """A row for each source, the dearest first; a cell is empty where the source has no such cost."""
    table = Table(title=f"Cost ({summary['cost.compute']:,.0f} tokens of compute)", title_justify="left")
    for name in ("", *COSTS):
        table.add_column(name.replace("_", "-"), justify="right" if name else "left")
    sources = {key.split(".")[1] for key in summary if key.startswith("cost.") and key.count(".") == 2}
    for source in sorted(sources, key=lambda source: -(summary.get(f"cost.{source}.seconds") or 0)):
        amounts = ((summary.get(f"cost.{source}.{unit}"), style) for unit, style in COSTS.items())
        table.add_row(source, *("" if amount is None else format(amount, style) for amount, style in amounts))
    return table


def _order(key: str) -> tuple[int, str]:
    """pass_at_16 after pass_at_8."""
    return len(key), key


def _readable(name: str) -> str:
    return f"Pass@{name.removeprefix('pass_at_')}" if name.startswith("pass_at_") else name.replace("_", " ")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"

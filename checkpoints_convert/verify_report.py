"""What a verification found, for people and for machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_cgrpo.config.errors import ConfigError, RunError

_SHOWN = 10
_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


@dataclass(frozen=True)
class Check:
    """``offenders`` are the first of what failed, by name; ``measures`` what was measured."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str
    offenders: tuple[str, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    hf: Path
    megatron: Path
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """No check failed; what could not be compared because the directories lack it does not count."""
        return not any(check.status == "failed" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        checks = [asdict(check) for check in self.checks]
        return {"hf": str(self.hf), "megatron": str(self.megatron), "passed": self.passed, "checks": checks}

    def print(self, console: Console) -> None:
        table = Table("check", "result", "detail")
        for check in self.checks:
            colour = _COLOURS[check.status]
            table.add_row(check.name, f"[{colour}]{check.status}[/]", escape(check.detail))
        console.print(table)
        for check in self.checks:
            for offender in check.offenders:  # outside the table, whose columns would break names
                console.print(f"[red]{check.name}[/]: {escape(offender)}", soft_wrap=True, highlight=False)
        verdict = "[green]the same model[/]" if self.passed else "[bold red]not the same model[/]"
        console.print(f"{escape(str(self.hf))} and {escape(str(self.megatron))}: {verdict}", soft_wrap=True)


def judge(name: str, problems: Sequence[str], agreed: str) -> Check:
    """Passed with ``agreed`` as its detail where there are no problems; failed with their number and the first few."""
    if not problems:
        return Check(name, "passed", agreed)
    first = f", the first {_SHOWN} of them" if len(problems) > _SHOWN else ""
    detail = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}{first} below"
    return Check(name, "failed", detail, tuple(problems[:_SHOWN]))


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """What cannot be read fails its own check and no other."""
    try:
        return check()
    except (ConfigError, RunError, OSError) as error:
        return Check(name, "failed", str(error))

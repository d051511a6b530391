"""What a check finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Check:
    """``found`` against ``expected``, and the ``remedy`` where they differ; ``node`` is null for the whole cluster.

    ``fail``: a run would not start, or train wrongly. ``warn``: it would run, slowly or at a risk. ``skipped``: could
    not be looked at; ``found`` says why.
    """

    name: str
    status: Status
    found: str
    expected: str = ""
    remedy: str = ""
    node: str | None = None


def judged(name: str, good: bool, found: str, expected: str, remedy: str, otherwise: Status = "fail") -> Check:
    """``ok`` where ``good``, and else ``otherwise`` with the remedy."""
    return Check(name, "ok" if good else otherwise, found, expected, "" if good else remedy)


def healthy(checks: Iterable[Check]) -> bool:
    return all(check.status != "fail" for check in checks)


def as_json(checks: Iterable[Check]) -> dict[str, Any]:
    """``{"ok": bool, "checks": [{name, status, found, expected, remedy, node}]}``."""
    listed = list(checks)
    return {"ok": healthy(listed), "checks": [asdict(check) for check in listed]}

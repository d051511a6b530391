"""Prints what the planner predicts of published set-ups beside what was measured in them, as a Markdown table.

    python tools/plan_calibration.py

Exits with 1 where a prediction is off by more than its tolerance and no reason is given.
"""

from __future__ import annotations

import sys

from megatron_cgrpo.plan.calibration import markdown, rows


def main() -> None:
    table = list(rows())
    print(markdown(table), end="")
    within = sum(row.within for row in table)
    print(f"\n{within} of {len(table)} within 15 % (memory) or 30 % (all else).")
    sys.exit(any(not row.within and not row.why for row in table))


if __name__ == "__main__":
    main()

"""What streaming, staleness and packing gain, what pushes and lost engines cost, and how a step grows.

    python tools/bench_rollouts.py                              # an hour on two idle cores (estimated)
    python tools/bench_rollouts.py --json --images docs/images  # one JSON object on standard output, and the plots
    python tools/bench_rollouts.py --only streaming recovery    # 15 minutes (estimated)
    python tools/bench_rollouts.py --only learning              # reward curves over seeds: another hour (estimated)
    python tools/bench_rollouts.py --quick                      # whether it works; its figures mean nothing

Every figure is a ratio or share of runs that alternate (A B, B A, and so on), one value a repetition. Runs are those of
`mcgrpo train`; their first and last step are not counted. Lengths and failures are set by the weights of the model
(benchmark/markov.py), not by tampering with the sampler.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

from benchmark import machine
from benchmark.rollouts import growth, learning, packing, recovery, staleness, streaming
from benchmark.rollouts.bench import Bench
from benchmark.rollouts.growth_plot import plot
from rich.console import Console
from rich.table import Table

SECTIONS = {
    "streaming": streaming,
    "staleness": staleness,
    "packing": packing,
    "recovery": recovery,
    "growth": growth,
    "learning": learning,
}
USUAL = [name for name in SECTIONS if name != "learning"]
PLOT = "rollout_growth.png"
CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is running is ended, too
    machine.pin(options.cores)
    result: dict[str, Any] = {"quick": options.quick, "machine": machine.describe(), "sections": {}}
    output = CONSOLE if options.json else Console(highlight=False)
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="bench-rollouts-") as work:
            bench = Bench(Path(work), options.repeats, options.steps, options.quick, CONSOLE.print)
            found = SECTIONS[name].measure(bench).to_json()
        result["sections"][name] = found
        output.print(table(name, found))
    if options.images is not None and "growth" in result["sections"]:
        plot(result["sections"]["growth"], options.images / PLOT)
    if options.json:
        print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=USUAL)
    parser.add_argument("--repeats", type=int, help="of each run; 3, with --quick 1")
    parser.add_argument("--steps", type=int, help="that count in a run; 4, with --quick 2")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--images", type=Path, help=f"a directory for {PLOT}")
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 3)
    options.steps = options.steps or (2 if options.quick else 4)
    return options


def table(name: str, found: dict[str, Any]) -> Table:
    shown = Table("figure", "median", "from", "to", "goal", title=name)
    for figure, spread in found["figures"].items():
        values = [f"{spread[key]:.3g}" for key in ("median", "low", "high")]
        shown.add_row(figure, *values, found["goals"].get(figure, ""))
    return shown


if __name__ == "__main__":
    main()

"""What streaming, staleness and packing gain, what pushes and lost engines cost, and how a step grows.

    python tools/bench_rollouts.py                              # about an hour and a half on two idle cores
    python tools/bench_rollouts.py --json --images docs/images  # one JSON object on standard output, and the plots
    python tools/bench_rollouts.py --only streaming recovery    # some sections
    python tools/bench_rollouts.py --results rollouts.json      # kept there after each section; again: what is missing
    python tools/bench_rollouts.py --quick                      # whether it works; its figures mean nothing

Every figure is a ratio or share of runs that alternate (A B, B A, and so on), one value a repetition. Runs are those of
`mcgrpo train`; their first and last step are not counted. Lengths and failures are set by the weights of the model
(benchmark/markov.py), not by tampering with the sampler. A section that fails costs the others nothing, but the exit
code is 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark import machine
from benchmark.results import Results
from benchmark.rollouts import growth, growth_plot, learning, learning_plot, packing, recovery, staleness, streaming
from benchmark.rollouts.bench import Bench, Size, section_table
from benchmark.rollouts.streaming_plot import plot_shares, plot_timeline

SECTIONS: dict[str, ModuleType] = {
    "streaming": streaming,
    "staleness": staleness,
    "packing": packing,
    "recovery": recovery,
    "growth": growth,
    "learning": learning,
}
PLOTS: dict[str, tuple[str, Callable[[dict[str, Any], Path], None]]] = {
    "rollout_streaming.png": ("streaming", plot_timeline),
    "rollout_tails.png": ("streaming", plot_shares),
    "rollout_growth.png": ("growth", growth_plot.plot),
    "rollout_learning.png": ("learning", learning_plot.plot),
}


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is running is ended, too
    machine.pin(options.cores)
    results = Results(options.results, quick=options.quick)
    output = sys.stderr if options.json else sys.stdout
    for name in options.only or results.missing(SECTIONS):
        found = results.measure(name, partial(_measure, name, options))
        if "error" not in found:
            print(f"{name}\n\n{section_table(found)}\n", file=output, flush=True)
    if options.images is not None:
        _draw(results, options.images)
    if options.json:
        print(results.to_json())
    if failed := results.errors(SECTIONS):
        raise SystemExit(f"without figures: {', '.join(failed)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these, whether --results has them or not")
    parser.add_argument("--results", type=Path, help="a JSON file of sections, which those measured now are added to")
    parser.add_argument("--repeats", type=int, help="of each run; without it as many as each section takes")
    parser.add_argument("--steps", type=int, help="that count in a run; without it as many as each section takes")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--images", type=Path, help=f"a directory for {', '.join(PLOTS)}")
    return parser.parse_args()


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    usual: Size = SECTIONS[name].BRIEF if options.quick else SECTIONS[name].FULL
    size = replace(usual, repeats=options.repeats or usual.repeats, steps=options.steps or usual.steps)
    with tempfile.TemporaryDirectory(prefix="bench-rollouts-") as work:
        bench = Bench(Path(work), size, options.quick, partial(print, file=sys.stderr, flush=True))
        found: dict[str, Any] = SECTIONS[name].measure(bench).to_json()
    return found


def _draw(results: Results, directory: Path) -> None:
    for file, (name, plot) in PLOTS.items():
        if "figures" in results.sections.get(name, {}):
            plot(results.sections[name], directory / file)


if __name__ == "__main__":
    main()

"""Samples a second of plain GRPO, end to end, beside TRL's GRPOTrainer and a loop of `transformers` and torch.

    python tools/bench_peers.py            # half an hour on two idle cores (estimated)
    python tools/bench_peers.py --json     # one JSON object on standard output, the tables on standard error
    python tools/bench_peers.py --quick    # some minutes: whether it works; its figures mean nothing

All sides train the same model on the same prompts with the same verifier, loss, batch and limits, on the same cores, in
turns: A B C, C B A, and so on. Responses end where the model ends them, and its weights are set so that their lengths
are `long-tailed` or all `equal` (benchmark/markov.py); nobody's sampler is changed. Start-up and the first step are not
counted. TRL is installed into an environment of its own at the first call, which needs a package index.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

from benchmark import machine
from benchmark.markov import Chain, Tail
from benchmark.peers.compare import SIDES, TRL, Comparison
from benchmark.peers.environment import default_directory, trl_python
from benchmark.setting import Setting
from rich.console import Console
from rich.table import Table

TAIL = Tail(short=32, long=256, of_long=0.15)
BRIEF = Tail(short=4, long=16, of_long=0.2)
FULL = {
    "long-tailed": Setting(Chain(TAIL, TAIL), "easy", 16, 8, prompt_tokens=32, max_response=512, max_critique=8),
    "equal": Setting(Chain(TAIL, TAIL, steps=94), "count", 16, 8, prompt_tokens=32, max_response=128, max_critique=8),
}
QUICK = {
    "long-tailed": Setting(Chain(BRIEF, BRIEF), "easy", 4, 4, prompt_tokens=8, max_response=24, max_critique=8),
    "equal": Setting(Chain(BRIEF, BRIEF, steps=6), "count", 4, 4, prompt_tokens=8, max_response=12, max_critique=8),
}
CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is running is ended, too
    machine.pin(options.cores)
    result: dict[str, Any] = {"quick": options.quick, "machine": machine.describe(), "lengths": {}}
    trl = trl_python(options.environment) if TRL in options.sides else None
    output = CONSOLE if options.json else Console(highlight=False)
    for name in options.lengths:
        CONSOLE.print(f"{name} responses")
        setting = (QUICK if options.quick else FULL)[name]
        with tempfile.TemporaryDirectory(prefix="bench-peers-") as work:
            comparison = Comparison(setting, options.steps, options.repeats, options.cores, Path(work), trl)
            found = comparison.run(options.sides, CONSOLE.print)
        result["lengths"][name] = found
        output.print(side_table(name, found))
        if found["ratios"]:
            output.print(ratio_table(name, found))
    if options.json:
        print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--lengths", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--repeats", type=int, help="of each side; 3, with --quick 1")
    parser.add_argument("--steps", type=int, help="that count in a repetition; 3, with --quick 1")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--environment", type=Path, default=default_directory(), help="where TRL is, or is to be")
    options = parser.parse_args()
    usual = 1 if options.quick else 3
    options.repeats, options.steps = options.repeats or usual, options.steps or usual
    return options


def side_table(name: str, found: dict[str, Any]) -> Table:
    table = Table("side", "samples/s", "tokens a sample", "reward", title=f"{name} responses")
    for side, rate in found["samples_per_s"].items():
        tokens, reward = found["tokens_per_sample"][side], found["reward"][side]
        table.add_row(side, spread(rate), f"{tokens:.1f}", f"{reward:.2f}")
    return table


def ratio_table(name: str, found: dict[str, Any]) -> Table:
    table = Table("ratio", "of samples/s", "of tokens/s", title=f"{name} responses, of the same repetition")
    for pair, ratios in found["ratios"].items():
        table.add_row(pair, spread(ratios["samples_per_s"]), spread(ratios["tokens_per_s"]))
    return table


def spread(value: dict[str, float]) -> str:
    return f"{value['median']:.3g} ({value['low']:.3g} to {value['high']:.3g})"


if __name__ == "__main__":
    main()

"""Samples a second of plain GRPO, end to end, beside TRL's GRPOTrainer and a loop of `transformers` and torch.

    python tools/bench_peers.py                        # an hour on two idle cores (estimated)
    python tools/bench_peers.py --json                 # a JSON object on standard output, the tables on standard error
    python tools/bench_peers.py --only equal           # some lengths
    python tools/bench_peers.py --results peers.json   # kept there after each lengths; again: what is missing
    python tools/bench_peers.py --quick                # some minutes: whether it works; its figures mean nothing

All sides train the same model on the same prompts with the same verifier, loss, batch and limits, on the same cores, in
turns: A B C, C B A, and so on. Responses end where the model ends them, and its weights are set so that their lengths
are `long-tailed` or all `equal` (benchmark/markov.py); nobody's sampler is changed. Start-up and the first step are not
counted. TRL is installed into an environment of its own at the first call, which needs a package index.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import machine
from benchmark.markov import Chain, Tail
from benchmark.peers.compare import SIDES, TRL, Comparison
from benchmark.peers.environment import default_directory, trl_python
from benchmark.ratios import shown
from benchmark.results import Results
from benchmark.setting import Setting
from benchmark.tables import markdown_table


def _setting(chain: Chain, problems: str, max_response: int) -> Setting:
    return Setting(chain, problems, 16, 8, prompt_tokens=32, max_response=max_response, max_critique=8)


def _brief(chain: Chain, problems: str) -> Setting:
    return Setting(chain, problems, 4, 4, prompt_tokens=8, max_response=24, max_critique=8, hidden=64, vocab=256)


TAIL, BRIEF = Tail(32, 256, of_long=0.15), Tail(4, 16, of_long=0.2)
FULL = {
    "long-tailed": _setting(Chain(TAIL, TAIL), "easy", 512),
    "equal": _setting(Chain(TAIL, TAIL, steps=94), "count", 128),
}
QUICK = {
    "long-tailed": _brief(Chain(BRIEF, BRIEF), "easy"),
    "equal": _brief(Chain(BRIEF, BRIEF, steps=6), "count"),
}


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is running is ended, too
    machine.pin(options.cores)
    trl = trl_python(options.environment) if set(TRL) & set(options.sides) else None
    results = Results(options.results, quick=options.quick)
    output = sys.stderr if options.json else sys.stdout
    for name in options.only or results.missing(FULL):
        found = results.measure(name, partial(_measure, name, options, trl))
        if "error" not in found:
            print(f"{name}\n\n{side_table(found)}\n\n{ratio_table(found)}\n", file=output, flush=True)
    if options.json:
        print(results.to_json())
    if failed := results.errors(FULL):
        raise SystemExit(f"without figures: {', '.join(failed)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(FULL), help="these, whether --results has them or not")
    parser.add_argument("--results", type=Path, help="a JSON file of lengths, which those measured now are added to")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--repeats", type=int, help="of each side; 3, with --quick 1")
    parser.add_argument("--steps", type=int, help="that count in a repetition; 3, with --quick 1")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--environment", type=Path, default=default_directory(), help="where TRL is, or is to be")
    options = parser.parse_args()
    usual = 1 if options.quick else 3
    options.repeats, options.steps = options.repeats or usual, options.steps or usual
    return options


def _measure(name: str, options: argparse.Namespace, trl: Path | None) -> dict[str, Any]:
    setting = (QUICK if options.quick else FULL)[name]
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as work:
        comparison = Comparison(setting, options.steps, options.repeats, options.cores, Path(work), trl)
        return comparison.run(options.sides, lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True))


def side_table(found: dict[str, Any]) -> str:
    rows = [
        [
            side,
            shown(rate),
            f"{found['tokens_per_sample'][side]:.1f}",
            f"{found['longest_of_a_step'][side]:.0f}",
            f"{found['reward'][side]:.2f}",
        ]
        for side, rate in found["samples_per_s"].items()
    ]
    return markdown_table(["side", "samples/s", "tokens a response", "longest of a step", "mean reward"], rows)


def ratio_table(found: dict[str, Any]) -> str:
    rows = [
        [pair, shown(ratios["samples_per_s"]), shown(ratios["tokens_per_s"]), ratios["goal"]]
        for pair, ratios in found["ratios"].items()
    ]
    return markdown_table(["ratio", "of samples/s", "of tokens/s", "goal"], rows)


if __name__ == "__main__":
    main()

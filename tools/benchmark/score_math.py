"""How fast the math domain scores: answers a minute over groups of responses to the benchmarks' problems.

``python tools/benchmark/score_math.py FILE.parquet [--rows 10000] [--samples 8] [--workers 2]``

FILE has the columns ``data_source`` and ``reward_model.ground_truth``. Of each problem's responses a half gives its
answer (half of those in another notation), the others give answers of the same source's problems.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterator

import pyarrow.parquet as pq

from megatron_cgrpo.rewards.math_answer import MathVerifier, same_notation
from megatron_cgrpo.rewards.verifier import Row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=8, help="responses to a problem")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    pairs = list(answers(options.file, options.rows, options.samples))
    algebra = sum(same_notation(given, answer) is None for given, answer in pairs)
    began = time.perf_counter()
    with MathVerifier(options.workers) as verifier:
        verdicts = verifier.score(Row(rf"Therefore \boxed{{{given}}}.", answer) for given, answer in pairs)
    seconds = time.perf_counter() - began
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{len(pairs)} answers, {algebra} of them by computer algebra: {dict(Counter(v.cause for v in verdicts))}")
    print(f"{seconds:.1f} s with {options.workers} workers ({cpu:.1f} s CPU): {60 * len(pairs) / seconds:.0f} a minute")


def answers(file: str, rows: int, samples: int) -> Iterator[tuple[str, str]]:
    """(given, correct) answers, the groups of ``samples`` together; the same ones for the same arguments."""
    generator = random.Random(0)
    sources = defaultdict(list)
    for row in pq.read_table(file).to_pylist():
        sources[row["data_source"]].append(row["reward_model"]["ground_truth"])
    problems = [(source, answer) for source, answers in sources.items() for answer in answers]
    generator.shuffle(problems)
    for number in range(rows):
        source, answer = problems[number // samples % len(problems)]
        right = (answer, rf"{answer} + 0") if "," not in answer and "=" not in answer else (answer,)
        yield generator.choice(right if generator.random() < 0.5 else sources[source]), answer


if __name__ == "__main__":
    main()

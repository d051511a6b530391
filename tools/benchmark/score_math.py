"""How fast the math domain scores, and whether its computer algebra recognises the benchmarks' own answers.

``python tools/benchmark/score_math.py FILE.parquet [--rows 10000] [--samples 8] [--workers 2]``

FILE has the columns ``data_source``, ``prompt`` and ``reward_model.ground_truth``. For the speed, a half of each
problem's responses give its answer (half of those in another notation), the others give answers of the same source's
problems. Then every different problem's answer, in random order, is compared with itself and with the next one's by
the algebra alone, without the short cuts by which an answer equals itself by definition. Exceptions are listed.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import pyarrow.parquet as pq

from megatron_cgrpo.rewards.math_answer import MathVerifier, same_notation
from megatron_cgrpo.rewards.verifier import Row
from megatron_cgrpo.types import Verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=8, help="responses to a problem")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.rows:
        measure_speed(list(answers(options.file, options.rows, options.samples)), options.workers)
    own = different_problems(options.file)
    check("their own", [(answer, answer) for answer in own], options.workers, lambda verdict: verdict.correct)
    # An answer that two problems share is right for both.
    others = [(given, right) for given, right in zip([*own[1:], own[0]], own, strict=True) if given != right]
    check("other problems'", others, options.workers, lambda verdict: verdict.cause in ("wrong", "no_answer"))


def measure_speed(pairs: Sequence[tuple[str, str]], workers: int) -> None:
    algebra = sum(same_notation(given, answer) is None for given, answer in pairs)
    began = time.perf_counter()
    with MathVerifier(workers) as verifier:
        verdicts = verifier.score(Row(rf"Therefore \boxed{{{given}}}.", answer) for given, answer in pairs)
    seconds = time.perf_counter() - began
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{len(pairs)} answers, {algebra} of them by computer algebra: {dict(Counter(v.cause for v in verdicts))}")
    print(f"{seconds:.1f} s with {workers} workers ({cpu:.1f} s CPU): {60 * len(pairs) / seconds:.0f} a minute")


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


def different_problems(file: str) -> list[str]:
    """The answer of every problem once, in random order; the same order every time."""
    rows = pq.read_table(file).to_pylist()
    found = {(row["data_source"], row["prompt"][-1]["content"]): row["reward_model"]["ground_truth"] for row in rows}
    return random.Random(0).sample([*found.values()], len(found))


def check(whose: str, pairs: Sequence[tuple[str, str]], workers: int, good: Callable[[Verdict], bool]) -> None:
    """Compares the pairs by the algebra alone and prints those whose verdict is not ``good``."""
    began = time.perf_counter()
    with MathVerifier(workers) as verifier:
        futures = [verifier.compare(given, answer) for given, answer in pairs]
        verdicts = [future.result() for future in futures]
    seconds = time.perf_counter() - began
    bad = [(verdict, pair) for verdict, pair in zip(verdicts, pairs, strict=True) if not good(verdict)]
    counts = dict(Counter(verdict.cause for verdict in verdicts))
    print(f"{len(pairs)} problems against {whose} answers, by algebra alone: {counts}")
    print(f"{1 - len(bad) / len(pairs):.2%} as they should be; {60 * len(pairs) / seconds:.0f} a minute")
    for verdict, (given, answer) in bad:
        print(f"  {verdict.cause}: {given!r} against {answer!r}")


if __name__ == "__main__":
    main()

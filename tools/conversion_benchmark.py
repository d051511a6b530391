"""Time and memory of HF -> Megatron -> HF on random checkpoints, beside ``cp`` of the same files in the same run.

    python tools/conversion_benchmark.py --out runs/conversion

Makes one checkpoint after the other, needs disk for four copies of the largest, and deletes them. Each repeat copies
the Hugging Face files, converts them (TP2·PP2) and converts them back, with the source in the page cache (warm) and out
of it (cold); nothing else should run meanwhile. Fails where a round trip is not bit-exact. Writes measurements.jsonl,
machine.json, figures.md and figures.png; --report makes the last two again from the first two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from benchmark import other_import
from benchmark.checkpoints import check_same, count, nbytes, shape_of, size_name, write_model
from benchmark.figures import Row, rows
from benchmark.machine import processor
from benchmark.measure import CACHES, Cache, Job, Measurement, torch_rss
from benchmark.ratios import in_turn
from benchmark.report import Machine, markdown, plot
from rich.console import Console
from rich.table import Table

from checkpoints_convert.options import KEEP, Options

COPIES = 4
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}
MEASUREMENTS, MBRIDGE, MACHINE = "measurements.jsonl", "mbridge.jsonl", "machine.json"
CONSOLE = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Plan:
    """``sizes`` in parameters, ascending; ``mbridge``: an interpreter that has it."""

    sizes: list[int]
    repeats: int
    caches: tuple[Cache, ...]
    mbridge: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/conversion"))
    parser.add_argument("--sizes", type=parameters, nargs="+", default=["0.25B", "0.5B", "1B", "2B"], metavar="N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--caches", choices=CACHES, nargs="+", default=CACHES)
    parser.add_argument("--mbridge", type=Path, metavar="PYTHON", help="measure mbridge's import, too, with this one")
    parser.add_argument("--work", type=Path, help="where the checkpoints are made; default: a directory in --out")
    parser.add_argument("--report", action="store_true", help="measure nothing, report what --out holds")
    options = parser.parse_args()
    options.sizes = [parameters(size) if isinstance(size, str) else size for size in options.sizes]
    if not options.report:
        plan = Plan(sorted(options.sizes), options.repeats, tuple(options.caches), options.mbridge)
        command = shlex.join(["python", "tools/conversion_benchmark.py", *sys.argv[1:]])
        measure(options.out, plan, options.work or options.out / "checkpoints", command)
    report(options.out)


def measure(out: Path, plan: Plan, work: Path, command: str) -> None:
    if (out / MEASUREMENTS).exists():
        raise SystemExit(f"{out} holds an earlier measurement: name another --out, or report it with --report")
    out.mkdir(parents=True, exist_ok=True)
    (out / MACHINE).write_text(json.dumps(asdict(machine(work, command)), indent=2) + "\n", encoding="utf-8")
    for size in plan.sizes:
        for measured in measure_size(size, plan, work):
            name = MBRIDGE if isinstance(measured, other_import.Import) else MEASUREMENTS
            with (out / name).open("a", encoding="utf-8") as file:
                file.write(measured.to_json() + "\n")
            CONSOLE.print(describe(measured))


def describe(measured: Measurement | other_import.Import) -> str:
    if isinstance(measured, Measurement):
        what, seconds, peak = f"{measured.operation} {measured.cache}", measured.seconds, measured.peak_rss
    else:
        what, seconds = f"mbridge tp={measured.tp} pp={measured.pp}", measured.load + measured.save
        peak = sum(measured.peak_rss)
    return f"{size_name(measured.parameters)} {what}: {seconds:.2f} s, {peak / 1e6:.0f} MB"


def measure_size(parameters: int, plan: Plan, work: Path) -> Generator[Measurement | other_import.Import, None, None]:
    """Deletes ``work`` in the end."""
    shape = shape_of(parameters)
    needed = COPIES * nbytes(shape)
    work.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(work).free) < needed:
        raise SystemExit(f"{work}: has {free / 1e9:.1f} GB free of {needed / 1e9:.1f}: name another --work, or sizes")
    hf, copy, megatron, back = (work / name for name in ("hf", "copy", "megatron", "back"))
    size = count(shape), nbytes(shape)
    jobs = [Job("cp", hf, copy, *size), Job("hf-to-megatron", hf, megatron, *size)]
    jobs.append(Job("megatron-to-hf", megatron, back, *size))
    try:
        CONSOLE.print(f"a checkpoint of {size[0]:,} parameters, {shape}")
        write_model(hf, shape)
        for repeat in range(plan.repeats):
            for cache in in_turn(plan.caches, repeat):
                for job in jobs if repeat % 2 == 0 else [*jobs[1:], jobs[0]]:
                    yield job.run(cache, repeat)
                check_same(hf, back)
                for directory in (copy, megatron, back):
                    shutil.rmtree(directory)
            if plan.mbridge is not None:
                for variant in other_import.VARIANTS:
                    yield other_import.run(plan.mbridge, hf, work / "mbridge", size, variant)
    finally:
        shutil.rmtree(work)


def report(out: Path) -> None:
    lines = (out / MEASUREMENTS).read_text(encoding="utf-8").splitlines()
    found = rows([Measurement(**json.loads(line)) for line in lines])
    on = Machine(**json.loads((out / MACHINE).read_text(encoding="utf-8")))
    text = markdown(found, on)
    if (out / MBRIDGE).exists():
        lines = (out / MBRIDGE).read_text(encoding="utf-8").splitlines()
        text += f"\n{other_import.table([other_import.Import(**json.loads(line)) for line in lines])}\n"
    (out / "figures.md").write_text(text, encoding="utf-8")
    plot(found, on, out / "figures.png")
    CONSOLE.print(summary(found))
    CONSOLE.print(f"{out}/figures.md and figures.png hold the rest")


def summary(found: list[Row]) -> Table:
    table = Table("weights", "conversion", "cache", "s", "GB/s", "of cp", "RSS MB", "limit")
    for row in found:
        table.add_row(
            size_name(row.parameters),
            row.operation,
            row.cache,
            f"{row.seconds:.2f}",
            f"{row.bytes / row.seconds / 1e9:.2f}",
            f"{row.ratio:.2f}",
            f"{row.peak_rss / 1e6:.0f}",
            f"{row.rss_limit / 1e6:.0f}",
        )
    return table


def machine(work: Path, command: str) -> Machine:
    with closing(measure_size(1, Plan([1], 1, ("warm",)), work)) as tiny:
        fixed = next(m for m in tiny if isinstance(m, Measurement) and m.operation == "hf-to-megatron")
    return Machine(
        command=command,
        cores=len(os.sched_getaffinity(0)),
        processor=processor(),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=f"{platform.system()} {platform.release()}",
        torch=torch.__version__,
        threads=Options.parse(KEEP, None).threads,
        torch_rss=torch_rss(),
        fixed_rss=fixed.peak_rss,
        fixed_anonymous=fixed.peak_anonymous,
    )


def parameters(text: str) -> int:
    """0.25B -> 250000000."""
    scale = UNITS.get(text[-1:].upper(), 1)
    return int(float(text[:-1] if scale > 1 else text) * scale)


if __name__ == "__main__":
    main()

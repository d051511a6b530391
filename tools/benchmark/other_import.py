"""mbridge's import of the same checkpoint, with an interpreter that has mbridge."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmark.measure import warm

_SCRIPT = Path(__file__).with_name("mbridge_import.py")
VARIANTS = ((1, 1, False), (1, 1, True), (2, 2, False))
"""tp, pp, memory_efficient"""


@dataclass(frozen=True)
class Import:
    """Seconds of the slowest rank, and bytes of each rank; ``rss_before``: without a model, after all imports."""

    parameters: int
    bytes: int
    tp: int
    pp: int
    memory_efficient: bool
    load: float
    save: float
    rss_before: list[int]
    peak_rss: list[int]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def run(python: Path, hf: Path, target: Path, size: tuple[int, int], variant: tuple[int, int, bool]) -> Import:
    """``size``: parameters and bytes; ``variant``: one of ``VARIANTS``. Removes ``target`` afterwards."""
    warm(hf)
    tp, pp, lean = variant
    command = [str(python), str(_SCRIPT), "--hf", str(hf), "--megatron", str(target), "--tp", str(tp), "--pp", str(pp)]
    done = subprocess.run(
        [*command, *(["--memory-efficient"] if lean else [])], check=True, stdout=subprocess.PIPE, text=True
    )
    shutil.rmtree(target)
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Import(
        parameters=size[0],
        bytes=size[1],
        tp=tp,
        pp=pp,
        memory_efficient=lean,
        load=max(rank["load"] for rank in ranks),
        save=max(rank["save"] for rank in ranks),
        rss_before=[rank["rss_before"] for rank in ranks],
        peak_rss=[rank["peak_rss"] for rank in ranks],
    )


def table(imports: Sequence[Import]) -> str:
    """Markdown: medians of the times and largest peaks over the repeats."""
    heads = ["weights GB", "tp·pp", "memory_efficient", "processes", "load s", "save s", "peak RSS MB, largest process"]
    heads += ["all processes", "all / weights", "before, each"]
    lines = [heads, ["---"] * len(heads)]
    keys = dict.fromkeys((each.bytes, each.tp, each.pp, each.memory_efficient) for each in imports)
    for key in sorted(keys):
        own = [each for each in imports if (each.bytes, each.tp, each.pp, each.memory_efficient) == key]
        total = max(sum(each.peak_rss) for each in own)
        lines.append(
            [
                f"{own[0].bytes / 1e9:.2f}",
                f"{own[0].tp}·{own[0].pp}",
                "yes" if own[0].memory_efficient else "no",
                str(len(own[0].peak_rss)),
                f"{median(each.load for each in own):.2f}",
                f"{median(each.save for each in own):.2f}",
                f"{max(max(each.peak_rss) for each in own) / 1e6:.0f}",
                f"{total / 1e6:.0f}",
                f"{total / own[0].bytes:.0%}",
                f"{max(max(each.rss_before) for each in own) / 1e6:.0f}",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""Learning curves of several recipes over several seeds: runs what is missing, then tabulates and plots all of it.

    python tools/compare_presets.py --out runs/compare --seeds 0 1 2

Finished runs are kept, interrupted ones are resumed. Each arm is the sandbox recipe with overrides; arms differ in the
method only. A seed has its own misconceptions, base model and prompts, which all its arms share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from megatron_cgrpo.analysis.curves import plot_curves

RECIPE = Path(__file__).parents[1] / "examples" / "sandbox.yaml"
ARMS = {
    "r1_drgrpo": ["algorithm.preset=r1_drgrpo"],
    "critique_grpo": [],
    "critique_grpo_gamma_0.1": ["algorithm.refinement.gamma=0.1"],
    "critique_grpo_on_policy": ["algorithm.refinement.ratio=on_policy"],
}
FIGURES = ("base.pass_at_1", "trained.pass_at_1", "trained.pass_at_8", "misconceptions.repaired", "seconds.step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms", nargs="+", choices=sorted(ARMS), default=["r1_drgrpo", "critique_grpo", "critique_grpo_on_policy"]
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every arm, after --")
    options = parser.parse_args()
    runs: dict[str, list[Path]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm, directories in runs.items():
            directories.append(run(options.out / arm / f"seed_{seed}", seed, ARMS[arm] + options.overrides))
    plot_curves(options.out / "pass_at_1.png", runs, "eval.pass_at_1", "held-out Pass@1")
    print(table(runs))


def run(directory: Path, seed: int, overrides: list[str]) -> Path:
    """Trains unless the run is finished; returns its directory."""
    if (directory / "summary.json").exists():
        return directory
    seeds = [f"{key}={seed}" for key in ("seed", "task.seed", "warm_start.seed")]
    resume = ["--resume"] if directory.exists() else []
    command = [sys.executable, "-m", "megatron_cgrpo", "train", str(RECIPE), f"run.dir={directory}"]
    subprocess.run([*command, *seeds, *overrides, *resume], check=True)
    return directory


def table(runs: dict[str, list[Path]]) -> str:
    """Markdown: mean ± sample standard deviation over seeds, and the final Pass@1 of each seed."""
    heads = [*FIGURES, "trained.pass_at_1 by seed"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm, directories in runs.items():
        summaries = [json.loads((directory / "summary.json").read_text()) for directory in directories]
        cells = [spread([summary[figure] for summary in summaries]) for figure in FIGURES]
        cells.append(", ".join(f"{summary['trained.pass_at_1']:.3f}" for summary in summaries))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main()

"""PNG plots of one run, from its ``metrics.jsonl`` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_cgrpo.observe.metrics import Metrics, read_metrics

ENTROPY = {
    "entropy.initial": "all initial responses",
    "entropy.refined": "all refinements, under their critique",
}
LIKELIHOOD = {
    "ledger.logp_critique": "refinements as sampled, under the critique",
    "ledger.logp_question": "the same given the question alone",
}
_DECADE = "ledger.p.le_"
GRADIENTS = {"gradient.rollout": "initial responses", "gradient.refinement": "refinements"}
PHASES: tuple[str, ...] = ("generate", "verify", "critique", "refine")
PHASES += ("logprob", "measure", "update", "sync", "record", "checkpoint", "evaluate", "idle")


def plot_run(run_dir: Path) -> list[Path]:
    """Write ``plots/*.png`` below the run directory and return them. A plot without data is left out."""
    steps = read_metrics(run_dir / "metrics.jsonl")
    plots: dict[str, tuple[str, Callable[[Axes], bool]]] = {
        "pass_at_1": ("held-out Pass@1", lambda axes: draw(axes, steps, {"eval.pass_at_1": "Pass@1"})),
        "reward": ("share", lambda axes: _reward(axes, steps)),
        "refinement": (
            "share",
            lambda axes: draw(
                axes,
                steps,
                {"refinement.questions_refined": "questions refined", "refinement.valid": "valid refinements"},
            ),
        ),
        "entropy": ("nats per token", lambda axes: draw(axes, steps, ENTROPY)),
        "misconceptions": (
            "share repaired",
            lambda axes: draw(axes, steps, {"eval.misconceptions_repaired": "misconceptions repaired"}),
        ),
        "phases": ("share of the step", lambda axes: _phases(axes, steps)),
        "likelihood": ("nats per token", lambda axes: draw(axes, steps, LIKELIHOOD)),
        "probabilities": ("share of refined tokens", lambda axes: _probabilities(axes, steps)),
        "gradients": ("gradient norm", lambda axes: draw(axes, steps, GRADIENTS)),
    }
    written = []
    for name, (ylabel, fill) in plots.items():
        path = run_dir / "plots" / f"{name}.png"
        if save_figure(path, ylabel, fill):
            written.append(path)
    return written


def save_figure(path: Path, ylabel: str, fill: Callable[[Axes], bool], xlabel: str = "step") -> bool:
    """Draw one figure; nothing is written where ``fill`` found nothing to draw."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if not fill(axes):
        return False
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return True


def series(steps: Sequence[Metrics], key: str) -> tuple[list[int], list[float]]:
    """The steps that have ``key``, and its values there."""
    present = [metrics for metrics in steps if key in metrics]
    return [int(metrics["step"]) for metrics in present], [float(metrics[key]) for metrics in present]


def draw(axes: Axes, steps: Sequence[Metrics], labels: dict[str, str]) -> bool:
    """One line for each key that occurs; whether any did."""
    drawn = False
    for key, label in labels.items():
        x, y = series(steps, key)
        if x:
            axes.plot(x, y, marker="o" if len(x) < 30 else None, markersize=3, label=label)
            drawn = True
    return drawn


def _reward(axes: Axes, steps: Sequence[Metrics]) -> bool:
    failed = [
        {"step": metrics["step"], "share": metrics["groups.failed"] / metrics["groups.total"]}
        for metrics in steps
        if metrics.get("groups.total")
    ]
    rewards = draw(axes, steps, {"reward.mean": "mean reward", "reward.initial": "mean reward, initial responses"})
    return draw(axes, failed, {"share": "failed groups"}) or rewards


def _probabilities(axes: Axes, steps: Sequence[Metrics]) -> bool:
    """The decades of a refined token's probability given the question alone, stacked from the unlikeliest."""
    counted = [metrics for metrics in steps if "ledger.count.tokens" in metrics]
    if not counted:
        return False
    decades = sorted((key.removeprefix(_DECADE) for key in counted[0] if key.startswith(_DECADE)), key=float)
    shares = [[metrics[f"{_DECADE}{decade}"] for metrics in counted] for decade in decades]
    labels = [f"p ≤ {decade}" for decade in decades]
    axes.stackplot([int(metrics["step"]) for metrics in counted], shares, labels=labels)
    axes.set_ylim(0, 1)
    return True


def _phases(axes: Axes, steps: Sequence[Metrics]) -> bool:
    timed = [metrics for metrics in steps if metrics.get("time.step")]
    present = [phase for phase in PHASES if any(f"time.{phase}" in metrics for metrics in timed)]
    if not present:
        return False
    shares = [[metrics.get(f"time.{phase}", 0.0) / metrics["time.step"] for metrics in timed] for phase in present]
    axes.stackplot([int(metrics["step"]) for metrics in timed], shares, labels=present)
    axes.set_ylim(0, 1)
    return True

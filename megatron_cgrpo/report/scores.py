"""Tables of what was learned: by every run and every method, and Pass@k curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from megatron_cgrpo.analysis.pass_at_k import read_pass_at_k
from megatron_cgrpo.report.embedded_task import taught
from megatron_cgrpo.report.methods import Method, Spread
from megatron_cgrpo.report.run_files import Run
from megatron_cgrpo.report.tables import NOTHING, Cell, Table, noted, number, spread, without_empty_columns

PASS_AT_1 = "eval.pass_at_1"
PASS_AT_8 = "eval.pass_at_8"
REPAIRED = "eval.misconceptions_repaired"
_SELF_CRITIQUE = {
    "before.pass_at_1": "answers, Pass@1",
    "after.pass_at_1": "all refined, Pass@1",
    "judged.pass_at_1": "refined where judged wrong, Pass@1",
    "fixed": "wrong ones fixed",
    "broken": "right ones broken",
    "false_correct": "wrongly called correct",
    "false_incorrect": "wrongly called incorrect",
    "dropped": "without a critique",
}


def runs_table(methods: Sequence[Method]) -> Table:
    """Every run that was named, the unfinished ones too."""
    rows = [
        [
            Cell(str(run.directory)),
            Cell(method.label),
            Cell(str(run.seed), run.seed),
            Cell(run.state),
            number(_latest(run), 1, 100),
        ]
        for method in methods
        for run in method.runs
    ]
    note = "The last score of an unfinished run is shown here, and is in no mean."
    return Table("runs", "Runs", ["run", "method", "seed", "state", "last Pass@1 (%)"], rows, note)


def results_table(methods: Sequence[Method]) -> Table:
    """Mean ± sample standard deviation over the finished runs of each method, in per cent."""
    figures: list[tuple[str, Callable[[Run], float | None]]] = []
    for name, key in (("Pass@1", PASS_AT_1), ("Pass@8", PASS_AT_8)):
        figures += [
            (f"base {name}", partial(_of_finished, Run.base, key)),
            (f"final {name}", partial(_of_finished, Run.final, key)),
            (f"best {name}", partial(_of_finished, Run.best, key)),
        ]
    figures.append(("misconceptions repaired", partial(_of_finished, Run.final, REPAIRED)))
    rows = [
        [
            Cell(method.label),
            Cell(f"{len(method.finished)} of {len(method.runs)}", len(method.finished)),
            *(spread(method.spread(figure)) for _, figure in figures),
            Cell(_by_seed(method) or NOTHING),
        ]
        for method in methods
    ]
    note = "Per cent of held-out problems: mean ± sample standard deviation over the finished runs."
    columns = ["method", "runs", *(name for name, _ in figures), "final Pass@1 by seed"]
    return noted(without_empty_columns(Table("results", "Results", columns, rows, note)), taught(methods))


def curve_table(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """Pass@k by label, from scores (``pass_at_<k>``) a seed: mean ± sample standard deviation, in per cent."""
    found = {label: [read_pass_at_k(scores) for scores in seeds] for label, seeds in curves.items()}
    ks = sorted({k for seeds in found.values() for points in seeds for k in points})
    rows = [
        [Cell(label), number(len(seeds)), *(spread(Spread.of(points.get(k) for points in seeds)) for k in ks)]
        for label, seeds in found.items()
    ]
    columns = ["model", "seeds", *(f"k = {k}" for k in ks)]
    return Table("pass_at_k", "Pass@k", columns, rows, "Unbiased estimates on held-out problems, in per cent.")


def self_critique_table(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """By label, from scores of ``mcgrpo eval --self-critique`` a seed: mean ± sample standard deviation."""
    rows = [
        [Cell(label), number(len(seeds)), *(spread(Spread.of(one.get(key) for one in seeds)) for key in _SELF_CRITIQUE)]
        for label, seeds in scores.items()
    ]
    note = (
        "Per cent. Each held-out answer is criticised once and answered again; shares of critiques are of all answers."
    )
    columns = ["model", "seeds", *_SELF_CRITIQUE.values()]
    return without_empty_columns(Table("self_critique", "Self-critique at test time", columns, rows, note))


def _of_finished(figure: Callable[[Run, str], float | None], key: str, run: Run) -> float | None:
    return figure(run, key) if run.finished else None


def _latest(run: Run) -> float | None:
    found = run.values(PASS_AT_1)
    return found[-1][1] if found else None


def _by_seed(method: Method) -> str:
    found = [(run.seed, run.final(PASS_AT_1)) for run in method.runs]
    return ", ".join(f"{seed}: {value:.1%}" for seed, value in found if value is not None)

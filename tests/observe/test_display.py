"""What a person sees while a run works and when it ends."""

import io
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from megatron_cgrpo.observe.display import Eta, LiveDisplay, PlainDisplay, open_display, phases_of
from megatron_cgrpo.observe.summary import summary_table, write_summary

METRICS = {
    "step": 3,
    "reward.mean": 0.4567,
    "groups.failed": 9,
    "groups.total": 40,
    "refinement.questions_refined": 0.5,
    "eval.pass_at_1": 0.625,
    "throughput.engine_tokens_per_s": 12345.6,
    "time.step": 10.0,
    "time.generate": 6.0,
    "time.update": 3.95,
    "time.idle": 0.05,
}
SHOWN = ("3/60", "0.457", "22%", "50.0%", "62.5%", "12,346")
SUMMARY = {
    "base.pass_at_1": 0.44,
    "base.pass_at_8": 0.553,
    "trained.pass_at_1": 0.766,
    "trained.pass_at_8": 0.9,
    "refinement.questions_refined": 0.545,
    "misconceptions.repaired": None,
    "seconds.generate": 61.25,
    "tokens.rollout": 1234567,
}


def test_without_a_terminal_a_step_is_one_plain_line(caplog: pytest.LogCaptureFixture) -> None:
    display = open_display(60, live=True, console=Console(file=io.StringIO()))
    assert isinstance(display, PlainDisplay)
    with caplog.at_level(logging.INFO, "megatron_cgrpo"), display:
        display.step(METRICS)
    (line,) = caplog.messages
    assert all(text in line for text in SHOWN), line
    assert "\n" not in line


def test_a_terminal_shows_the_same_figures_live() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    display = open_display(60, live=True, console=console)
    assert isinstance(display, LiveDisplay)
    with display:
        display.status("starting engines")
        display.step(METRICS)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(text in output for text in ("starting engines", "generate 60%  update 40%", *SHOWN))
    assert isinstance(open_display(60, live=False, console=console), PlainDisplay)


def test_phase_shares_are_largest_first_without_the_negligible() -> None:
    assert phases_of({"time.step": 10.0, "time.sync": 0.05, "time.update": 4.0, "time.generate": 5.9}) == (
        "generate 59%  update 40%"
    )
    assert phases_of({"step": 1}) == ""


def test_the_time_left_comes_from_this_process_and_not_from_set_up() -> None:
    now = [0.0]
    eta = Eta(total_steps=60, clock=lambda: now[0])
    now[0] = 500.0  # set-up
    eta.restart()
    now[0] = 504.0
    assert eta.after(step=41) == timedelta(seconds=4 * 19)  # a run resumed after step 40
    eta.restart()  # between steps: no effect
    now[0] = 510.0
    assert eta.after(step=42) == timedelta(seconds=5 * 18)


def test_the_summary_is_a_flat_file_and_a_table(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, SUMMARY)
    assert '"trained.pass_at_1": 0.766' in path.read_text()
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(SUMMARY))
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    cells = [[word for word in row if word not in "│┃"] for row in rows]
    assert ["Pass@1", "44.0%", "76.6%"] in cells
    assert ["Pass@8", "55.3%", "90.0%"] in cells
    assert ["seconds:", "generate", "61.2", "s"] in cells
    assert ["tokens:", "rollout", "1,234,567"] in cells


def test_the_dearest_source_of_cost_comes_first() -> None:
    cost = {"cost.compute": 12345, "cost.rollout.tokens": 12000, "cost.rollout.seconds": 2.0}
    cost |= {"cost.rollout.prompt_tokens": 500, "cost.rollout.device_seconds": 4.0, "cost.verification.seconds": 3.25}
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(SUMMARY | cost))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "Cost (12,345 tokens of compute)" in " ".join(lines)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    dear, cheap = ["verification", "", "", "3.2", ""], ["rollout", "500", "12,000", "2.0", "4.0"]
    assert cells.index(dear) < cells.index(cheap)


@pytest.mark.parametrize(
    ("absent", "named"), [("trained.pass_at_8", "trained.pass_at_8"), ("tokens.rollout", r"tokens\.\*")]
)
def test_a_summary_that_lacks_a_key_is_refused(tmp_path: Path, absent: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        write_summary(tmp_path / "summary.json", {k: v for k, v in SUMMARY.items() if k != absent})
    assert list(tmp_path.iterdir()) == []

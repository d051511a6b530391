"""One run that every fault happens to, in a seeded order: it gets over each by itself, and trains each prompt once.

The next fault comes when the run has said what it makes of the one before.

``MCGRPO_CHAOS_SEED`` chooses another schedule; a failure prints the seed and the schedule.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from chat_server import Answer, chat_server, says
from faults import CORE, ENGINE, RANK, check_gone, check_prompts, living
from processes import runs, titled
from ray_nodes import Nodes, ray_nodes
from small_disk import fill, small_disk
from training_runs import MARK, SMALL, Log, Run

from megatron_cgrpo.observe.metrics import read_metrics

logger = logging.getLogger(__name__)

SEED = int(os.environ.get("MCGRPO_CHAOS_SEED", "0"))
STALENESS = 1
RESPONSE_TOKENS = 12
"""Too few for some problems: their samples would go on, and their end is not waited for."""
RESTART, BACK = "; restart ", " runs again"
SAID = {
    "engine": "is out of service",
    "trainer": RESTART,
    "node": RESTART,
    "disk": "waiting up to",
}
"""What the log says of a fault, by its first word; that the critics' server is down is in a step's line."""
OUTAGE = ("critique.failed.server_down", "critique.failed.unreachable")
CRITIQUE = "Step 1 is wrong, it should be 6-9=7. Conclusion: incorrect [END]"
RUN_S = 2400
"""For everything, on a machine of two cores."""
FAULTS = (
    "engine core killed",
    "engine core frozen",
    "engine actor killed",
    "engine actor frozen",
    "trainer rank killed",
    "node lost",
    "disk full",
    "critic server down",
)
STEPS = 10_000
"""More than pass until every fault has been felt: then the run is asked to stop."""
SETTINGS = [
    *SMALL,
    f"train.steps={STEPS}",
    f"train.staleness={STALENESS}",
    "rollout.engines=2",
    "train.prompts_per_step=4",
    "train.updates_per_step=1",
    "evaluation.every=0",
    "evaluation.final_samples=1",
    "checkpoint.every=2",
    f"rollout.max_response_tokens={RESPONSE_TOKENS}",
    "rollout.progress_timeout_s=20",
    "critic.source=api",
    "critic.trigger=always",  # so that every step asks the server, and an outage shows in the next that is collected
    "critic.api.model=judge",
    "critic.api.retries=0",
    "critic.api.down_after=2",
]


@dataclass
class Target:
    """What the faults happen to."""

    run: Run
    log: Log
    nodes: Nodes
    disk: Path
    rng: Random
    server_is_up: bool = True
    deadline: float = field(default_factory=lambda: time.monotonic() + RUN_S)

    def strike(self, fault: str) -> None:
        """Returns when the run has felt the fault, and it is mended where it would not pass by itself.

        The server stays down until a step's line has shown it: a restart may take that line back later on, and what the
        server answers when the step is made again is no failure.
        """
        before, back, restarts = self._signs(fault), self.log.text.count(BACK), self.log.text.count(RESTART)
        mend = self._inject(fault)
        self.until(f"it has felt: {fault}", lambda: self._signs(fault) > before)
        mend()
        if fault.startswith("engine"):
            self.until(f"an engine is back after: {fault}", lambda: self.log.text.count(BACK) > back)
            assert self.log.text.count(RESTART) == restarts, "the run was restarted for an engine"

    def answer(self, body: dict[str, Any], number: int) -> Answer:
        return says(CRITIQUE) if self.server_is_up else Answer()

    def until(self, what: str, happens: Callable[[], object]) -> None:
        while not happens():
            assert self.run.process.poll() is None, f"the run ended before {what}: {self.log.finish()[-8000:]}"
            assert time.monotonic() < self.deadline, f"the time is up before {what}: {self.log.text[-8000:]}"
            time.sleep(0.1)

    def _inject(self, fault: str) -> Callable[[], None]:
        """What mends it."""
        match fault.split():
            case ["engine", part, how]:
                actor = living(self.run, ENGINE)[0]  # one that serves: those that are starting again are younger
                core = titled(actor.children(recursive=True), CORE)[0]
                victim = core if part == "core" else actor
                victim.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
                return lambda: self.until(f"it is rid of: {fault}", lambda: not runs(actor))
            case ["trainer", "rank", "killed"]:
                self._rank().kill()
            case ["node", "lost"]:
                self.nodes.lose(self.nodes.of(self._rank()))
            case ["disk", "full"]:
                return fill(self.disk).unlink
            case ["critic", "server", "down"]:
                self.server_is_up = False
                return self._start_server
        return lambda: None

    def _start_server(self) -> None:
        self.server_is_up = True

    def _signs(self, fault: str) -> int:
        """How often a fault of its kind has shown."""
        said = SAID.get(fault.split()[0])
        if said is None:
            return sum(cause in line for line in self._lines() for cause in OUTAGE)
        return self.log.text.count(said)

    def _lines(self) -> list[dict[str, float]]:
        metrics = self.run.directory / "metrics.jsonl"
        return read_metrics(metrics) if metrics.exists() else []

    def _rank(self) -> psutil.Process:
        return self.rng.choice(living(self.run, RANK))


def test_a_run_survives_every_fault(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(SEED)
    with chaos(folder, cache, monkeypatch, rng) as target:
        faults = list(FAULTS)
        if not target.disk.is_mount():
            warnings.warn("left out: disk full, since no file system of its own may be mounted here", stacklevel=1)
            faults.remove("disk full")
        schedule = [(fault, rng.random()) for fault in rng.sample(faults, len(faults))]
        logger.warning("MCGRPO_CHAOS_SEED=%d: %s", SEED, ", ".join(fault for fault, _ in schedule))
        for fault, delay in schedule:
            trained = target.run.last_step()
            target.until("another step", lambda trained=trained: target.run.last_step() > trained)
            time.sleep(delay)
            target.strike(fault)
        trained = target.run.last_step()
        target.until("it trains without faults", lambda: target.run.last_step() > trained + 2)
        run = target.run
        run.process.send_signal(signal.SIGTERM)
        while run.process.poll() is None:
            assert time.monotonic() < target.deadline, f"the run does not end: {target.log.text[-8000:]}"
            time.sleep(0.1)
        assert run.process.returncode == 128 + signal.SIGTERM, target.log.finish()[-8000:]
        check_gone(run, RANK, ENGINE, CORE)
        check_prompts(run, SETTINGS, run.last_step(), STALENESS)
        check_the_lines(run, run.last_step())


def check_the_lines(run: Run, steps: int) -> None:
    lines = read_metrics(run.directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(steps + 1))
    assert any(line.get("response.truncated", 0) > 0 for line in lines), "no sample was cut off"
    assert any(line.get("critique.api.generated_tokens", 0) > 0 for line in lines), "the server was never heard"
    assert (run.directory / "checkpoints" / f"step_{steps:06d}" / "manifest.json").is_file()


@contextmanager
def chaos(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, rng: Random) -> Iterator[Target]:
    """A run on nodes of which one is spare, on a disk and with a critics' server that can fail."""
    target: Target

    def answer(body: dict[str, Any], number: int) -> Answer:
        return target.answer(body, number)

    with small_disk(folder / "chaos_disk", 64, needed=False) as disk, chat_server(answer) as server:
        monkeypatch.setenv(MARK, str(disk / "chaos"))
        with ray_nodes(monkeypatch, 2, 2, 2) as nodes:
            run = Run(disk, cache, "chaos", f"critic.api.base_url={server.base_url}", settings=SETTINGS)
            target = Target(run, Log(run), nodes, disk, rng)
            try:
                yield target
            finally:
                run.kill()  # also what a lost node left behind

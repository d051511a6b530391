"""One run into which a seeded schedule injects every fault: it reaches its end by itself, each prompt trained once.

``MCGRPO_CHAOS_SEED`` chooses another schedule; a failure prints the seed and the schedule.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from chat_server import Answer, chat_server, says
from faults import CORE, ENGINE, RANK, check_gone, check_prompts, titled
from ray_nodes import Nodes, ray_nodes
from small_disk import fill, small_disk
from training_runs import MARK, SMALL, Run

from megatron_cgrpo.observe.metrics import read_metrics

logger = logging.getLogger(__name__)

SEED = int(os.environ.get("MCGRPO_CHAOS_SEED", "0"))
STALENESS = 1
RESPONSE_TOKENS = 12
"""Too few for some problems: their samples would go on, and their end is not waited for."""
OUTAGE_STEPS = 3
"""How long the disk stays full: a checkpoint is due in the meantime."""
LEFT_BYTES = 1 << 20
"""Less than a checkpoint needs, more than the lines and dumps of the steps that the disk stays full for."""
OUTAGE = ("critique.failed.server_down", "critique.failed.unreachable")
CRITIQUE = "Step 1 is wrong, it should be 6-9=7. Conclusion: incorrect [END]"
WAIT_S = 900
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
STEPS = len(FAULTS) + OUTAGE_STEPS + 1
SETTINGS = [
    *SMALL,
    f"train.steps={STEPS}",
    f"train.staleness={STALENESS}",
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
    """What the faults happen to. ``repairs`` maps a step to what is mended once it has been trained.

    The server stays down until a step's line has shown it: a restart may take that line back later on, and what the
    server answers when the step is made again is no failure.
    """

    run: Run
    nodes: Nodes
    disk: Path
    rng: Random
    server_is_up: bool = True
    outage_was_seen: bool = False
    repairs: dict[int, Callable[[], None]] = field(default_factory=dict)

    def inject(self, fault: str, step: int) -> None:
        match fault.split():
            case ["engine", "core", "killed"]:
                self._one(CORE).kill()
            case ["engine", "core", "frozen"]:
                self._one(CORE).send_signal(signal.SIGSTOP)
            case ["engine", "actor", "killed"]:
                self._one(ENGINE).kill()
            case ["engine", "actor", "frozen"]:
                self._one(ENGINE).send_signal(signal.SIGSTOP)
            case ["trainer", "rank", "killed"]:
                self._one(RANK).kill()
            case ["node", "lost"]:
                self.nodes.lose(self.nodes.of(self._one(RANK)))
            case ["disk", "full"]:
                filler = fill(self.disk, LEFT_BYTES)
                self.repairs[step + OUTAGE_STEPS] = filler.unlink
            case ["critic", "server", "down"]:
                self.server_is_up = False

    def repair(self, step: int) -> None:
        for due in [due for due in self.repairs if due <= step]:
            self.repairs.pop(due)()

    def answer(self, body: dict[str, Any], number: int) -> Answer:
        return says(CRITIQUE) if self.server_is_up else Answer()

    def watch(self, lines: Sequence[Mapping[str, float]]) -> None:
        if not self.server_is_up and any(cause in line for line in lines for cause in OUTAGE):
            self.server_is_up = self.outage_was_seen = True

    def _one(self, title: str) -> psutil.Process:
        """A process that lives now, or as soon as one does: an earlier fault may just have taken it."""
        deadline = time.monotonic() + WAIT_S
        while not (found := titled(self.run.session(), title)):
            assert time.monotonic() < deadline, f"there is no {title} any more"
            time.sleep(0.2)
        return self.rng.choice(found)


def test_a_run_survives_every_fault(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(SEED)
    schedule = [(step, fault, rng.random()) for step, fault in enumerate(rng.sample(FAULTS, len(FAULTS)), start=1)]
    told = ", ".join(f"{fault} after step {step}" for step, fault, _ in schedule)
    logger.warning("MCGRPO_CHAOS_SEED=%d: %s", SEED, told)
    with chaos(folder, cache, monkeypatch, rng) as target:
        run = target.run
        for step, fault, delay in schedule:
            wait_for_step(target, step)
            target.repair(step)
            time.sleep(delay)
            target.inject(fault, step)
        for step in range(len(FAULTS) + 1, STEPS + 1):
            wait_for_step(target, step)
            target.repair(step)
        _, errors = run.process.communicate(timeout=WAIT_S)
        assert run.process.returncode == 0, errors[-8000:]
        check_gone(run, RANK, ENGINE, CORE)
        check_prompts(run, SETTINGS, STEPS, STALENESS)
        assert target.outage_was_seen, "no step had a critique that failed while the server was down"
        check_that_faults_were_felt(run, errors)


def check_that_faults_were_felt(run: Run, errors: str) -> None:
    lines = read_metrics(run.directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert any(line.get("response.truncated", 0) > 0 for line in lines), "no sample was cut off"
    assert any(line.get("critique.api.generated_tokens", 0) > 0 for line in lines), "the server was never heard"
    for said in ("out of service", "restart 1 of 2 from step", "no checkpoint:"):
        assert said in errors, said
    assert (run.directory / "checkpoints" / f"step_{STEPS:06d}" / "manifest.json").is_file()


@contextmanager
def chaos(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, rng: Random) -> Iterator[Target]:
    """A run on nodes of which one is spare, on a disk and with a critics' server that can fail."""
    target: Target

    def answer(body: dict[str, Any], number: int) -> Answer:
        return target.answer(body, number)

    with small_disk(folder / "chaos_disk", 64) as disk, chat_server(answer) as server:
        monkeypatch.setenv(MARK, str(disk / "chaos"))
        with ray_nodes(monkeypatch, 2, 2, 2) as nodes:
            run = Run(disk, cache, "chaos", f"critic.api.base_url={server.base_url}", settings=SETTINGS)
            target = Target(run, nodes, disk, rng)
            try:
                yield target
            finally:
                if run.process.poll() is None:
                    run.process.kill()
                    run.process.communicate()


def wait_for_step(target: Target, step: int) -> None:
    """Steps that a restart has taken back are waited for again."""
    run = target.run
    metrics = run.directory / "metrics.jsonl"
    deadline = time.monotonic() + WAIT_S
    while True:
        lines = read_metrics(metrics) if metrics.exists() else []
        target.watch(lines)
        if any(line["step"] >= step for line in lines):
            return
        assert run.process.poll() is None, run.process.communicate()[1][-8000:]
        assert time.monotonic() < deadline, f"the run does not get to step {step}"
        time.sleep(0.1)

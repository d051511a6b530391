"""A little Slurm cluster on this machine: munged, slurmctld and several slurmd, all below one directory.

    python tools/slurm_on_one_machine.py start runs/slurm      # two nodes, n1 and n2, of two CPUs each
    source runs/slurm/env.sh                                   # so that sbatch, squeue, scancel and mcgrpo find it
    python tools/slurm_on_one_machine.py stop runs/slurm       # cancels what runs, and ends what it started

Needs Debian's packages (tools/environment/install_slurm.sh). Jobs of partition `urgent` pre-empt those of `main`, which
are told so (USR1) and have a minute. The CPUs are counted, not bound: nodes may have more together than the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
START_S = 300
STOP_S = 60
PORTS = range(30000, 32768)
"""Above those of the jobs' Ray clusters, and below those that Linux gives to connections by default."""
CONF = """\
ClusterName=mcgrpo
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge}/socket,cred_expire={credential_s}
CredType=cred/munge
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdPidFile={home}/%n.pid
SlurmdSpoolDir={home}/spool/%n
SlurmdLogFile={home}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{parameters}
KillWait=5
ReturnToService=2
"""
PARTITIONS = """\
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=2, help="of each node")
    parser.add_argument("--grace", type=int, default=60, help="seconds from the word of a pre-emption to its end")
    parser.add_argument(
        "--no-user-signal", action="store_true", help="of a pre-emption Slurm sends SIGTERM to all processes at once"
    )
    arguments = parser.parse_args()
    home = arguments.directory.absolute()
    if arguments.action == "stop":
        stop(home)
        return
    parameters = "" if arguments.no_user_signal else "SlurmctldParameters=preempt_send_user_signal"
    start(home, arguments.nodes, arguments.cpus, arguments.grace, parameters)
    print(f"{arguments.nodes} nodes are up. Next: source {arguments.directory}/env.sh")


def start(home: Path, nodes: int, cpus: int, grace_s: int, parameters: str) -> None:
    """Exits with the reason where a daemon is missing, or does not come up."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    daemons = {name: shutil.which(name, path=path) for name in DAEMONS}
    if missing := [name for name, program in daemons.items() if program is None]:
        sys.exit(f"missing: {', '.join(missing)}: run tools/environment/install_slurm.sh as root")
    if home.exists() and any(home.iterdir()):
        sys.exit(f"{home}: is not empty: stop the cluster that it holds, or name another directory")
    for directory in (home / "state", *(home / f"spool/n{number}" for number in range(1, nodes + 1))):
        directory.mkdir(parents=True)
    home.chmod(0o755)
    munge = Path(tempfile.mkdtemp(prefix="mcgrpo-munge-"))  # munged wants a socket that everybody can reach
    try:
        munge.chmod(0o755)
        (home / "munge").symlink_to(munge)
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        conf = home / "slurm.conf"
        conf.write_text(_configuration(home, munge, nodes, cpus, grace_s, parameters))
        (home / "env.sh").write_text(f"export SLURM_CONF={conf}\n")
        files = [f"--{name}-file={munge}/{name}" for name in ("pid", "log", "key", "seed")]
        _spawn(home, "munged", [str(daemons["munged"]), "--foreground", f"--socket={munge}/socket", *files])
        _wait(lambda: (munge / "socket").exists(), f"munged does not start: see {home}/munged.out")
        _spawn(home, "slurmctld", [str(daemons["slurmctld"]), "-D", "-f", str(conf)])
        for number in range(1, nodes + 1):
            _spawn(home, f"n{number}", [str(daemons["slurmd"]), "-D", "-f", str(conf), "-N", f"n{number}"])
        _wait(lambda: _idle_nodes(conf) == nodes, f"the nodes do not come up: see {home}/*.log")
    except BaseException as error:
        _end_daemons(home)
        shutil.rmtree(munge)
        sys.exit(f"{error or type(error).__name__}: remove {home} before another try")


def stop(home: Path) -> None:
    """Cancels every job, waits until their processes are gone, ends the daemons, and forgets the directory."""
    if not (home / "pids").is_file():
        sys.exit(f"{home}: holds no cluster that was started here")
    conf = home / "slurm.conf"
    with suppress(subprocess.CalledProcessError):  # a controller that does not answer has no jobs to cancel
        jobs = _slurm(conf, "squeue", "--noheader", "--format=%A").split()
        if jobs:
            _slurm(conf, "scancel", *set(jobs))
            with suppress(TimeoutError):
                _wait(lambda: not _slurm(conf, "squeue", "--noheader", "--states=all", "--format=%t").count("CG"), "")
    _end_daemons(home)
    shutil.rmtree((home / "munge").resolve())
    shutil.rmtree(home)


def _end_daemons(home: Path) -> None:
    pids = home / "pids"
    for line in reversed(pids.read_text().splitlines() if pids.exists() else []):
        if _is_ours(int(line), home, (home / "munge").resolve()):
            _end(int(line))


def _is_ours(pid: int, *directories: Path) -> bool:
    """Its number may have gone to another process meanwhile."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(str(directory).encode() in command for directory in directories)


def _configuration(home: Path, munge: Path, nodes: int, cpus: int, grace_s: int, parameters: str) -> str:
    host, ports = socket.gethostname().partition(".")[0], _free_ports(nodes + 1)
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    lines = [
        CONF.format(
            home=home,
            munge=munge,
            host=host,
            ports=ports,
            user=user,
            parameters=parameters,
            first_job=1 + secrets.randbelow(9000),  # ports and directories of jobs are theirs by number, on one machine
            credential_s=10,  # as long does a job wait that was requeued
        )
    ]
    for number in range(1, nodes + 1):
        lines.append(f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[number]} CPUs={cpus}\n")
    names = ",".join(f"n{number}" for number in range(1, nodes + 1))
    lines.append(PARTITIONS.format(nodes=names, grace_s=grace_s))
    return "".join(lines)


def _free_ports(count: int) -> list[int]:
    """That no connection takes until Slurm does."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(
        f"fewer than {count} ports of {PORTS.start} to {PORTS.stop - 1} are free: end what listens there"
    )


def _spawn(home: Path, name: str, command: list[str]) -> None:
    """In a session of its own, which a Ctrl-C in this terminal does not reach; its number goes to ``pids``."""
    with (home / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=output, start_new_session=True)
    with (home / "pids").open("a") as pids:
        pids.write(f"{process.pid}\n")


def _idle_nodes(conf: Path) -> int:
    try:
        return _slurm(conf, "sinfo", "--noheader", "--Node", "--partition=main", "--format=%t").split().count("idle")
    except subprocess.CalledProcessError:  # the controller is not there yet
        return 0


def _slurm(conf: Path, *command: str) -> str:
    environment = os.environ | {"SLURM_CONF": str(conf)}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def _wait(done: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + START_S
    while not done():
        if time.monotonic() >= deadline:
            raise TimeoutError(complaint)
        time.sleep(0.2)


def _end(pid: int) -> None:
    """SIGTERM, and SIGKILL where that does not do."""
    for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not Path(f"/proc/{pid}").exists():
                return
            time.sleep(0.1)


if __name__ == "__main__":
    main()

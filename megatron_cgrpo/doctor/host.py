"""Judging a machine's GPUs, CPUs, memory and limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_cgrpo.doctor.check import Check, judged
from megatron_cgrpo.doctor.facts import NodeFacts

GIB = 1 << 30
MEMORY = 4 * GIB
"""What a rank and an engine of the smallest model need, with Ray."""
OPEN_FILES = 8192
CPUS_PER_GPU = 2
"""A trainer rank or engine worker keeps one CPU busy; its data, verifiers and transfers take another."""


def host_checks(facts: NodeFacts, shared_memory: int, ray_cpus: float | None = None) -> Iterator[Check]:
    """``shared_memory`` in bytes is what a run would put there; ``ray_cpus`` what Ray believes the machine has."""
    yield from _gpus(facts)
    yield _cpus(facts, ray_cpus)
    yield judged(
        "memory",
        facts.memory >= MEMORY,
        _gib(facts.memory),
        f"{_gib(MEMORY)} or more",
        "ask for more memory (Slurm: --mem), or raise the container's limit",
    )
    yield _shared_memory(facts, shared_memory)
    yield judged(
        "open files",
        facts.open_files >= OPEN_FILES,
        str(facts.open_files),
        f"{OPEN_FILES} or more",
        f"ulimit -n {OPEN_FILES} before the start, or raise LimitNOFILE of the service that starts it: Ray and NCCL "
        "open sockets for every process they talk to",
        otherwise="warn",
    )


def _gpus(facts: NodeFacts) -> Iterator[Check]:
    if not facts.gpus:
        yield Check("gpus", "skipped", "none: the trainer and the engines run on CPUs")
        return
    names = sorted({f"{gpu.name} {gpu.memory_mib / 1024:.0f} GiB" for gpu in facts.gpus})
    yield judged(
        "gpus",
        facts.usable_gpus == len(facts.gpus) and len(names) == 1,
        f"{facts.usable_gpus} of {len(facts.gpus)} usable by torch: {', '.join(names)}",
        "all usable, of one kind",
        "unset CUDA_VISIBLE_DEVICES or ask Slurm for all (--gpus-per-node); ranks of different kinds wait for the "
        "slowest",
        otherwise="warn" if facts.usable_gpus else "fail",
    )
    if facts.usable_gpus < 2:
        yield Check("peer access", "skipped", "needs two GPUs")
        return
    pairs = facts.usable_gpus * (facts.usable_gpus - 1)
    first = "".join(f", not {a} from {b}" for a, b in facts.strangers[:1])
    yield judged(
        "peer access",
        not facts.strangers,
        f"{pairs - len(facts.strangers)} of {pairs} pairs{first}",
        "every pair of GPUs",
        "without it tensors travel through the host: check `nvidia-smi topo -p2p r`, disable ACS or the IOMMU's "
        "translation, and give containers --ipc=host",
        otherwise="warn",
    )


def _cpus(facts: NodeFacts, ray_cpus: float | None) -> Check:
    found = f"{facts.cpus:g} of the machine's {facts.machine_cpus} usable"
    if facts.allocated_cpus is not None:
        found += f", {facts.allocated_cpus} given by Slurm"
    if ray_cpus is not None:
        found += f", Ray counts {ray_cpus:g}"
    wanted = max(1, CPUS_PER_GPU * len(facts.gpus))
    if ray_cpus is not None and ray_cpus > facts.cpus:
        remedy = "Ray starts more processes than there are CPUs: ray start --num-cpus=$SLURM_CPUS_ON_NODE"
        return Check("cpus", "warn", found, "Ray counts no more than are usable", remedy)
    if facts.allocated_cpus is not None and facts.cpus < facts.allocated_cpus:
        remedy = "the step is bound to fewer than the job has: srun --cpus-per-task=$SLURM_CPUS_ON_NODE"
        return Check("cpus", "warn", found, "all that Slurm has given", remedy)
    return judged(
        "cpus", facts.cpus >= wanted, found, f"{wanted} or more", "ask for more (Slurm: --cpus-per-task)", "warn"
    )


def _shared_memory(facts: NodeFacts, needed: int) -> Check:
    found = "no /dev/shm" if facts.shared_memory is None else f"{_gib(facts.shared_memory)} free"
    return judged(
        "shared memory",
        (facts.shared_memory or 0) >= needed,
        found,
        f"{_gib(needed)} or more",
        "give the container more (--shm-size, or --ipc=host), or mount -o remount,size=50% /dev/shm: Ray's objects, "
        "NCCL within a machine, and weights that are pushed as files go through it",
    )


def kinds_check(nodes: Sequence[NodeFacts]) -> Check:
    """All GPUs of a cluster should be of one kind: every step waits for the slowest."""
    kinds = sorted({gpu.name for facts in nodes for gpu in facts.gpus})
    counts = sorted({len(facts.gpus) for facts in nodes if facts.gpus})
    if not kinds:
        return Check("gpu kinds", "skipped", "no GPUs in the cluster")
    return judged(
        "gpu kinds",
        len(kinds) == 1 and len(counts) == 1,
        f"{', '.join(kinds)}; {', '.join(map(str, counts))} a node",
        "one kind, as many on every node",
        "use nodes of one kind (Slurm: --constraint): every step waits for the slowest rank",
        otherwise="warn",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"

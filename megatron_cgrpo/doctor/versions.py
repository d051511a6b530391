"""Judging a machine's versions by the matrix."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.doctor.check import Check, judged
from megatron_cgrpo.doctor.facts import NodeFacts
from megatron_cgrpo.doctor.matrix import PACKAGES, PYTHON, Package, torch_build

_INSTALL = {"cpu": "make env", "gpu": "make env EXTRAS=gpu,test"}


def version_checks(facts: NodeFacts) -> Iterator[Check]:
    """Python, the packages, and on a machine with GPUs what is below torch."""
    machine = "gpu" if facts.gpus else "cpu"
    first, beyond = PYTHON
    yield judged(
        "python",
        first <= facts.python < beyond,
        _dotted(facts.python),
        f"{_dotted(first)} to below {_dotted(beyond)}",
        f"make the environment with another interpreter: {_INSTALL[machine]} PYTHON=/path/to/python{_dotted(first)}",
    )
    for package in PACKAGES:
        if package.machine in ("any", machine):
            yield _package(package, facts, _INSTALL[machine])
    yield _apex(facts)
    if facts.gpus:
        yield from _below_torch(facts)


def _package(package: Package, facts: NodeFacts, install: str) -> Check:
    """A local version, as in ``2.13.0+cu130``, says how it was built: that is judged by what torch says of itself."""
    found = facts.packages.get(package.name)
    return judged(
        package.name,
        found is not None and found.partition("+")[0] == package.version,
        found or "not installed",
        package.version,
        f"install the pinned versions: {install}",
        otherwise="fail" if package.required else "warn",
    )


def _apex(facts: NodeFacts) -> Check:
    found = {None: "not installed", True: "NVIDIA's", False: "PyPI's, a web framework"}[facts.nvidia_apex]
    return judged(
        "apex",
        facts.nvidia_apex is not False,
        found,
        "NVIDIA's, or none",
        "pip uninstall apex: it only shadows NVIDIA's, which is built from its repository; Transformer Engine's "
        "optimiser serves without either",
        otherwise="warn",
    )


def _below_torch(facts: NodeFacts) -> Iterator[Check]:
    build = torch_build()
    driver = facts.gpus[0].driver
    major = driver.partition(".")[0]
    yield judged(
        "driver",
        major.isdecimal() and int(major) >= build.driver,
        driver,
        f"{build.driver} or newer, which CUDA {build.cuda} needs",
        "update NVIDIA's driver on this machine, or run in a container with CUDA's forward-compatibility libraries",
    )
    yield judged(
        "cuda",
        facts.torch_cuda == build.cuda,
        f"torch is built for {facts.torch_cuda}" if facts.torch_cuda else "torch is built without CUDA",
        build.cuda,
        f"install torch's CUDA build: {_INSTALL['gpu']}",
    )
    yield judged(
        "nccl",
        facts.nccl == build.nccl,
        facts.nccl or "torch sees no GPU to ask with",
        build.nccl,
        "leave NCCL to torch's wheel: unset LD_PRELOAD and LD_LIBRARY_PATH entries that bring another one; all nodes "
        "must have the same",
        otherwise="warn",
    )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))

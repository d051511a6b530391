"""The job that `mcgrpo launch slurm` asks Slurm for."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from megatron_cgrpo.config.section import Section

Word = Annotated[str, StringConstraints(pattern=r"^[^\s'\"$`\\]+$")]
"""What goes into an ``#SBATCH`` line as it is."""
Line = Annotated[str, StringConstraints(pattern=r"^[^\n]+$")]
Assignment = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*=[^\n]*$")]
"""``NAME=value``"""
Memory = Annotated[str, StringConstraints(pattern=r"^\d+[KMGTkmgt]?$"), Field(coerce_numbers_to_str=True)]
_GIB = {"K": 2**-20, "": 2**-10, "M": 2**-10, "G": 1.0, "T": 2**10}
_TIME = re.compile(r"^(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d+)(?::(?P<seconds>\d+))?$")


class NodeGroup(Section):
    """Nodes that are alike. What is null is left to Slurm's defaults; ``cpus_per_node: null`` takes whole nodes."""

    partition: Word | None = None
    constraint: Word | None = None
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_node: int | None = Field(None, ge=1)
    memory_per_node: Memory | None = Field(None, description="as Slurm writes it: 512G; 0: all of the node's")

    @property
    def memory_gib(self) -> float | None:
        """Of ``memory_per_node``, which is in MiB where it has no unit; None where the job has what a node has."""
        if self.memory_per_node is None:
            return None
        number = self.memory_per_node.rstrip("KMGTkmgt")
        return int(number) * _GIB[self.memory_per_node[len(number) :].upper()] or None


class EngineNodes(NodeGroup):
    """Nodes for engines alone, in a part of their own of a heterogeneous job; the others are the trainer's.

    ``nodes: 0``: one group, whose nodes take both.
    """

    nodes: int = Field(0, ge=0)


class ContainerConfig(Section):
    """``image: null``: none. ``mounts`` are ``host:container`` paths; the working directory is always mounted."""

    image: Line | None = None
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: tuple[Word, ...] = ()


class SlurmConfig(NodeGroup):
    """``gpu`` is the kind of GPU, for the check that the run fits. ``interface`` is the network interface (``ib0``)
    that Ray, NCCL and gloo use; null: their own choice. ``venv`` is activated where there is no container; null: what
    the submitting shell has. ``options`` are further ``#SBATCH`` options, ``prologue`` lines of the script, such as
    ``module load cuda``, and ``environment`` has a ``NAME=value`` for each variable of all processes.

    ``warning_s`` before the end of its time, and when it is pre-empted, a job saves, is queued again and resumes:
    ``requeues`` times in a row without a step in between (0: never). ``log_dir`` is created where the job is submitted.
    """

    account: Word | None = None
    qos: Word | None = None
    reservation: Word | None = None
    time_limit: int = Field(24 * 3600, ge=60, description="seconds, or D-HH:MM:SS")
    warning_s: int = Field(600, ge=1, le=65535, description="for a checkpoint, whatever step is under way, and Slurm")
    requeues: int = Field(3, ge=0)
    start_timeout_s: int = Field(300, ge=1, description="for all nodes to join the Ray cluster")
    gpu: Word | None = None
    interface: Word | None = None
    venv: Path | None = Path(".venv")
    container: ContainerConfig = ContainerConfig()
    environment: tuple[Assignment, ...] = ()
    options: tuple[Line, ...] = ()
    prologue: tuple[Line, ...] = ()
    log_dir: Word = "logs"
    engines: EngineNodes = EngineNodes()

    @field_validator("time_limit", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        """YAML itself reads an unquoted 24:00:00 as seconds."""
        if not isinstance(value, str) or value.isdecimal():
            return value
        found = _TIME.match(value)
        if found is None or (found["seconds"] is None and found["days"] is None):
            raise ValueError("give seconds, HH:MM:SS or D-HH:MM:SS")
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @model_validator(mode="after")
    def _possible(self) -> "SlurmConfig":
        if self.warning_s >= self.time_limit:
            raise ValueError(
                f"warning_s={self.warning_s} is no less than time_limit={self.time_limit}: the job would be told to "
                "end when it begins: raise time_limit"
            )
        if wrong := [option for option in self.options if not option.startswith("-")]:
            raise ValueError(f"options: {wrong[0]!r} is no option of sbatch: write it as --name=value")
        return self

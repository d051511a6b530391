"""A run as a Slurm job: the script that is handed to sbatch, rendered from ``templates/job.sbatch.j2``."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.slurm import ContainerConfig, NodeGroup, SlurmConfig
from megatron_cgrpo.launch.array import Task

_TEMPLATES = Environment(  # bash has {# in ${#array[@]}
    loader=PackageLoader("megatron_cgrpo.launch"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    comment_start_string="<#",
    comment_end_string="#>",
)
_TEMPLATES.filters["quoted"] = shlex.quote


@dataclass(frozen=True)
class Job:
    """``recipe`` is the file as it was named, ``resolved`` with the overrides that all tasks have.

    ``nodes`` counts all of them, those of ``slurm.engines`` with the others.
    """

    recipe: Path
    overrides: tuple[str, ...]
    resolved: Recipe
    nodes: int
    tasks: tuple[Task, ...] = ()
    command: str = ""

    @property
    def name(self) -> str:
        return re.sub(r"[^A-Za-z0-9_.-]", "_", self.recipe.stem)


def render(job: Job) -> str:
    """The script, for bash and sbatch."""
    slurm, recipe = job.resolved.slurm, job.resolved
    het = slurm.engines.nodes > 0
    log_file = f"{slurm.log_dir}/{'%A_%a' if job.tasks else '%j'}.log"
    groups = [{"options": [*_job_options(job, log_file), *_node_options(slurm, job.nodes - slurm.engines.nodes)]}]
    if het:
        times = [f"--time={slurm_time(slurm.time_limit)}", "--requeue" if slurm.requeues else "--no-requeue"]
        groups.append({"options": [*times, *_node_options(slurm.engines, slurm.engines.nodes)]})
    in_container = _in_container(slurm.container, gpus=slurm.gpus_per_node > 0)
    pyxis = slurm.container.image is not None and slurm.container.runtime == "pyxis"
    return _TEMPLATES.get_template("job.sbatch.j2").render(
        recipe=str(job.recipe),
        nodes=job.nodes,
        command=job.command,
        groups=groups,
        het=het,
        overrides=job.overrides,
        run_dir=recipe.run.dir,
        tasks=job.tasks,
        log_dir=slurm.log_dir,
        log_file=log_file,
        prologue=slurm.prologue,
        activate=None if slurm.venv is None or in_container else str(slurm.venv / "bin/activate"),
        interface=slurm.interface,
        gpus=slurm.gpus_per_node > 0,
        gpus_per_node=(slurm.gpus_per_node, slurm.engines.gpus_per_node),
        environment=[assignment.split("=", 1) for assignment in slurm.environment],
        requeues=slurm.requeues,
        warning_s=slurm.warning_s,
        start_timeout_s=slurm.start_timeout_s,
        in_container=in_container,
        # pyxis has containers in steps only, not in the script of the job.
        on_head=f'"${{head_step[@]}}" {in_container}' if pyxis else in_container,
        pyxis=pyxis,
    )


def submit(script: str, job: Job) -> str:
    """The number of the job. Raises RunError with what sbatch says where it refuses."""
    log_dir = Path(job.resolved.slurm.log_dir)
    log_dir.mkdir(parents=True, exist_ok=True)  # Slurm does not create it, and the job's output would be lost
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, text=True, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise RunError("sbatch: is not installed here: submit from a login node of the cluster") from error
    except subprocess.CalledProcessError as error:
        raise RunError(f"sbatch: {error.stderr.strip()}") from error
    number = done.stdout.strip().partition(";")[0]
    (log_dir / f"{number}.sbatch").write_text(script)
    return number


def slurm_time(seconds: int) -> str:
    """``D-HH:MM:SS``"""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{seconds:02}"


def _job_options(job: Job, log_file: str) -> Iterator[str]:
    slurm: SlurmConfig = job.resolved.slurm
    yield f"--job-name={job.name}"
    for name in ("account", "qos", "reservation"):
        if (value := getattr(slurm, name)) is not None:
            yield f"--{name}={value}"
    yield f"--time={slurm_time(slurm.time_limit)}"
    yield f"--signal=B:USR1@{slurm.warning_s}"
    yield "--requeue" if slurm.requeues else "--no-requeue"
    yield f"--output={log_file}"
    yield "--open-mode=append"
    if job.tasks:
        yield f"--array=0-{len(job.tasks) - 1}"
    yield from slurm.options


def _node_options(group: NodeGroup, nodes: int) -> Iterator[str]:
    yield f"--nodes={nodes}"
    yield "--ntasks-per-node=1"
    yield "--exclusive" if group.cpus_per_node is None else f"--cpus-per-task={group.cpus_per_node}"
    if group.gpus_per_node:
        yield f"--gpus-per-node={group.gpus_per_node}"
    if group.memory_per_node is not None:
        yield f"--mem={group.memory_per_node}"
    if group.partition is not None:
        yield f"--partition={group.partition}"
    if group.constraint is not None:
        yield f"--constraint={group.constraint}"


def _in_container(container: ContainerConfig, gpus: bool) -> str:
    """What goes before a command to run it inside, with a space at its end; of pyxis options of srun."""
    if container.image is None:
        return ""
    image, mounts = shlex.quote(container.image), ["$PWD:$PWD", "/tmp:/tmp", *container.mounts]
    if container.runtime == "pyxis":
        return f'--container-image={image} --container-mounts="{",".join(mounts)}" --container-workdir="$PWD" '
    binds = "".join(f'--bind "{mount}" ' for mount in mounts)
    return f'apptainer exec {"--nv " if gpus else ""}{binds}--pwd "$PWD" {image} '

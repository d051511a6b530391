"""What no single section can know: checks across sections, against the model's shape, and of paths.

Each check yields sentences: field and value, what is wrong, the remedy. All of them are reported at once.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_cgrpo.config.critic_checks import critic_input_problems, critic_problems
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.megatron_checks import megatron_problems, megatron_shape_problems
from megatron_cgrpo.config.method_checks import method_problems
from megatron_cgrpo.config.model_files import CONFIG, SAFETENSORS_INDEX, VOCABULARIES, has_tokenizer, is_megatron
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.config.published import download_command
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout_checks import rollout_problems
from megatron_cgrpo.config.staleness_checks import staleness_problems
from megatron_cgrpo.config.task import FileTaskConfig, MisconceptionsConfig
from megatron_cgrpo.config.tensor_parallel import engine_layout_problems, tensor_parallel_problems

_BUCKET_PADDING = 128  # elements, in Megatron's gradient buffers


def check_recipe(recipe: Recipe, model: ModelShape | None, *, answers_only: bool = False) -> None:
    """Raises ConfigError listing every problem; ``model=None`` leaves out what needs the model's shape.

    With ``answers_only`` nobody criticises, whatever the recipe says of critics.
    """
    problems = [*_parallel(recipe), *_batch(recipe), *method_problems(recipe), *_sampling(recipe), *_task(recipe)]
    problems += [*rollout_problems(recipe), *megatron_problems(recipe)]
    if not answers_only:
        problems += [*critic_problems(recipe), *staleness_problems(recipe)]
    if model is not None:
        problems += [*_layout(recipe, model), *_context(recipe, model), *megatron_shape_problems(recipe, model)]
    if recipe.model.path is None:
        problems += _warm_start(recipe)
    if problems:
        raise ConfigError(problems)


def check_inputs(recipe: Recipe) -> None:
    """Raises ConfigError for a model directory or data file that is not there or cannot be used."""
    if problems := [*absent_inputs(recipe), *_unusable_inputs(recipe)]:
        raise ConfigError(problems)


def check_present_inputs(recipe: Recipe) -> None:
    """Raises ConfigError for what cannot be used, without asking for what :func:`absent_inputs` names."""
    if problems := [*_unusable_inputs(recipe)]:
        raise ConfigError(problems)


def absent_inputs(recipe: Recipe) -> tuple[str, ...]:
    """Published models that are yet to be downloaded, and data files: a run needs them, its plan does not."""
    absent = [
        f"{field}={directory}: is not here yet: download it: {command}"
        for field, directory in _models(recipe)
        if (command := download_command(directory)) is not None
    ]
    if isinstance(recipe.task, FileTaskConfig):
        for field, path in (("task.train", recipe.task.train), ("task.test", recipe.task.test)):
            if not path.is_file():
                absent.append(f"{field}={path}: there is no such file: name a JSONL or parquet file")
    return tuple(absent)


def _unusable_inputs(recipe: Recipe) -> Iterator[str]:
    for field, directory in _models(recipe):
        if download_command(directory) is None:
            yield from _model_files(field, directory)
    yield from _compute_of(recipe.train.compute_of)
    critic_model = recipe.critic.model.path
    if recipe.critic.needs_model and critic_model is not None and is_megatron(critic_model):
        yield (
            f"critic.model.path={critic_model}: is a Megatron checkpoint, which engines do not read: name a "
            "Hugging Face directory"
        )
    yield from critic_input_problems(recipe)


def _models(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    if recipe.model.path is not None:
        yield "model.path", recipe.model.path
    if recipe.critic.needs_model and recipe.critic.model.path is not None:
        yield "critic.model.path", recipe.critic.model.path


def check_run_dir(recipe: Recipe, resume: bool) -> None:
    """Raises ConfigError where the run cannot be written or is not there to be resumed. Changes nothing on disk."""
    if problems := [*_run_dir(Path(recipe.run.dir), resume)]:
        raise ConfigError(problems)


def _parallel(recipe: Recipe) -> Iterator[str]:
    parallel = recipe.parallel
    if parallel.sequence_parallel and parallel.tp == 1:
        yield "parallel.sequence_parallel=true: splits sequences over tensor-parallel ranks: set parallel.tp > 1"
    if parallel.vpp is not None and parallel.pp == 1:
        yield f"parallel.vpp={parallel.vpp}: interleaves pipeline stages: set parallel.pp > 1 or parallel.vpp=null"


def _batch(recipe: Recipe) -> Iterator[str]:
    prompts, updates, dp = recipe.train.prompts_per_step, recipe.train.updates_per_step, recipe.parallel.dp
    if prompts % updates:
        yield (
            f"train.prompts_per_step={prompts}: is not divisible by train.updates_per_step={updates}: "
            "make it a multiple"
        )
    rows = prompts // updates * min(1 if each.samples_nothing else each.group_size for each in recipe.algorithms)
    if rows < dp:
        yield (
            f"parallel.dp={dp}: exceeds the {rows} responses of a mini-batch: lower it, or raise "
            "train.prompts_per_step or algorithm.group_size"
        )
    if recipe.optimizer.min_lr > recipe.optimizer.lr:
        yield f"optimizer.min_lr={recipe.optimizer.min_lr}: exceeds optimizer.lr={recipe.optimizer.lr}: lower it"


def _sampling(recipe: Recipe) -> Iterator[str]:
    reason = (
        "truncated sampling draws from another distribution than the one whose log-probabilities train, which biases "
        "the ratio"
    )
    if recipe.rollout.top_p != 1:
        yield f"rollout.top_p={recipe.rollout.top_p}: {reason}: set rollout.top_p=1"
    if recipe.rollout.top_k != -1:
        yield f"rollout.top_k={recipe.rollout.top_k}: {reason}: set rollout.top_k=-1"


def _task(recipe: Recipe) -> Iterator[str]:
    task, prompts = recipe.task, recipe.train.prompts_per_step
    if isinstance(task, MisconceptionsConfig):
        if task.train_problems < prompts:
            yield (
                f"task.train_problems={task.train_problems}: is less than train.prompts_per_step={prompts}: "
                "raise it, or lower the latter"
            )
        if task.train_problems + task.test_problems > task.usable_problems:
            yield (
                f"task.train_problems={task.train_problems} + task.test_problems={task.test_problems}: exceed the "
                f"{task.usable_problems} that can be used: ask for fewer or raise task.max_operations"
            )
        if recipe.evaluation.prompts is not None and recipe.evaluation.prompts > task.test_problems:
            yield (
                f"evaluation.prompts={recipe.evaluation.prompts}: exceeds task.test_problems={task.test_problems}: "
                "lower it, or set null for all"
            )
    elif recipe.model.path is None:
        yield f"model.path=null: task.kind={task.kind} has no base model of its own: name a Hugging Face directory"


def _layout(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    parallel = recipe.parallel
    yield from tensor_parallel_problems(model, "parallel.tp", parallel.tp)
    if model.experts is not None and parallel.tp > 1 and not parallel.sequence_parallel:
        yield (
            f"parallel.tp={parallel.tp}: a model with experts trains on tensor-parallel ranks only if they split "
            "sequences: set parallel.sequence_parallel=true, or parallel.tp=1"
        )
    yield from _shared_embedding(recipe, model)
    chunks = parallel.pp * (parallel.vpp or 1)
    if model.layers % chunks:
        yield (
            f"parallel.pp={parallel.pp}, parallel.vpp={parallel.vpp}: the model's {model.layers} layers do not divide "
            f"into {chunks} chunks: choose a divisor"
        )
    yield from engine_layout_problems(model, "rollout.tensor_parallel", recipe.rollout.tensor_parallel)


def _shared_embedding(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    """Megatron-core 0.16 pads the copies of an embedding on the first and last stage differently: states mix up."""
    parallel = recipe.parallel
    if not (model.tied_embeddings and parallel.pp > 1 and recipe.optimizer.distributed):
        return
    elements = -(-model.vocab // parallel.tp) * model.hidden
    multiple = math.lcm(parallel.dp * parallel.cp, _BUCKET_PADDING)
    if elements % multiple:
        yield (
            f"parallel.pp={parallel.pp}: the model's tied embedding has {elements} elements on a rank, no multiple of "
            f"{multiple}, which Megatron's distributed optimiser saves wrongly: set "
            "optimizer.distributed=false, or parallel.pp=1"
        )


def _context(recipe: Recipe, model: ModelShape) -> Iterator[str]:
    rollout = recipe.rollout
    if rollout.context_tokens > model.max_positions:
        yield (
            f"rollout: a refinement may need {rollout.context_tokens} tokens (max_prompt_tokens="
            f"{rollout.max_prompt_tokens} + max_response_tokens={rollout.max_response_tokens} + "
            f"max_critique_tokens={rollout.max_critique_tokens} + max_refinement_tokens={rollout.refinement_tokens}), "
            f"but the model has {model.max_positions} positions: lower the limits"
        )


def _warm_start(recipe: Recipe) -> Iterator[str]:
    warm = recipe.warm_start
    if warm.hidden_size % warm.heads:
        yield f"warm_start.hidden_size={warm.hidden_size}: is no multiple of warm_start.heads={warm.heads}: change one"
    elif warm.hidden_size // warm.heads % 2:
        yield f"warm_start.heads={warm.heads}: gives heads of odd width, which rotary embedding cannot turn: change it"
    if warm.heads % warm.kv_heads:
        yield f"warm_start.heads={warm.heads}: is not divisible by warm_start.kv_heads={warm.kv_heads}: change one"
    for name, size in (("heads", warm.heads), ("kv_heads", warm.kv_heads), ("ffn_size", warm.ffn_size)):
        if size % warm.tp:
            yield f"warm_start.{name}={size}: is not divisible by warm_start.tp={warm.tp}: change one"
    if warm.rows_per_step < warm.dp:
        yield f"warm_start.rows_per_step={warm.rows_per_step}: is less than warm_start.dp={warm.dp}: raise it"


def _compute_of(run: Path | None) -> Iterator[str]:
    """A run is finished when it has its summary."""
    if run is not None and not all((run / name).is_file() for name in ("metrics.jsonl", "summary.json")):
        yield f"train.compute_of={run}: holds no finished run (metrics.jsonl, summary.json): name one, or finish it"


def _run_dir(path: Path, resume: bool) -> Iterator[str]:
    if path.is_dir():
        if not resume and any(path.iterdir()):
            yield f"run.dir={path}: holds an earlier run: continue it with --resume, or name another run.dir"
    elif path.exists():
        yield f"run.dir={path}: is a file: name a directory"
    elif resume:
        yield f"run.dir={path}: there is no run to resume: leave out --resume, or name the run's directory"
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if existing.is_dir():
        try:
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            yield f"run.dir={path}: {existing} cannot be written ({error.strerror}): name another run.dir"
    elif existing != path.absolute():
        yield f"run.dir={path}: {existing} is a file: name another run.dir"


def _model_files(field: str, directory: Path) -> Iterator[str]:
    if not (directory / CONFIG).is_file():
        policy = directory / "policy"
        remedy = f"name {policy}" if is_megatron(policy) else "name a Hugging Face model, or a converted one"
        yield f"{field}={directory}: has no config.json: {remedy}"
        return
    if not has_tokenizer(directory):
        yield f"{field}={directory}: has no tokenizer ({', '.join(VOCABULARIES)}): copy the model's tokenizer there"
    if is_megatron(directory):
        return
    index = directory / SAFETENSORS_INDEX
    if index.is_file():
        shards = _indexed_files(index)
        if shards is None:
            yield f"{field}={directory}: {index.name} is damaged: download it again"
        elif absent := sorted(name for name in shards if not (directory / name).is_file()):
            yield f"{field}={directory}: lacks {len(absent)} weight files, {absent[0]} first: download them again"
    elif not any(directory.glob("*.safetensors")) and not any(directory.glob("pytorch_model*.bin")):
        yield f"{field}={directory}: has neither *.safetensors nor a Megatron checkpoint: download or convert it"


def _indexed_files(index: Path) -> set[str] | None:
    """The weight files that an index names; None where it cannot be read."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        return None
    return set(files.values())

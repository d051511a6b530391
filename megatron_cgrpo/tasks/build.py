"""Makes the task that a recipe names, and the tokenizer that it writes with."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_cgrpo.config.task import FileTaskConfig, TaskConfig
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer
from megatron_cgrpo.tasks.problems.task import FileTask


def build_task(config: TaskConfig, tokenizer: Tokenizer) -> Task:
    """Close it when done. Raises ``ConfigError`` for unusable files, templates and sizes."""
    if isinstance(config, FileTaskConfig):
        return FileTask(config, tokenizer)
    return MisconceptionsTask(config, tokenizer)


def task_tokenizer(model: Path | None) -> Tokenizer:
    """The model's; without a model yet, the embedded task's own."""
    if model is not None:
        return load_tokenizer(model)
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return load_tokenizer(Path(folder))

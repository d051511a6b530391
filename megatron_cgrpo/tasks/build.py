"""Makes the task that a recipe names."""

from __future__ import annotations

from megatron_cgrpo.config.task import FileTaskConfig, TaskConfig
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.tasks.file_task import FileTask
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask


def build_task(config: TaskConfig, tokenizer: Tokenizer) -> Task:
    """Raises ``ConfigError`` for unusable files and impossible sizes."""
    if isinstance(config, FileTaskConfig):
        return FileTask(config, tokenizer)
    return MisconceptionsTask(config, tokenizer)

"""Checks of the ``critic`` section: sentences of field and value, what is wrong, the remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from megatron_cgrpo.config.critic import ApiConfig, CriticConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.task import FileTaskConfig


def critic_problems(recipe: Recipe) -> Iterator[str]:
    """What the recipe alone shows."""
    critic = recipe.critic
    if critic.noise and "program" not in critic.sources:
        yield (
            f"critic.noise={critic.noise}: replaces critiques of the task's own program, which nobody asks: set "
            "critic.kind=cot and critic.source=program, or critic.noise=0"
        )
    yield from _program(recipe)
    if recipe.reward.source == "critique":
        yield from _rewards(critic)
    if critic.needs_model and critic.model.path is None:
        user = "critic.source=model" if "model" in critic.sources else "critic.refiner=model"
        yield f"critic.model.path=null: {user} needs a model of its own: name a Hugging Face directory"
    if "api" in critic.sources:
        yield from _api(critic.api)


def critic_input_problems(recipe: Recipe) -> Iterator[str]:
    """What only the machine shows, beside the files of ``critic.model.path``."""
    key = recipe.critic.api.api_key_env
    if "api" in recipe.critic.sources and key is not None and not os.environ.get(key):
        yield f"critic.api.api_key_env={key}: the environment has no such variable: export it"


def _program(recipe: Recipe) -> Iterator[str]:
    """Text has no checker of its steps: every critique would fail, and be replaced by the answer or dropped."""
    task, critic = recipe.task, recipe.critic
    if not isinstance(task, FileTaskConfig) or "program" not in critic.sources:
        return
    if task.domain != "code":
        yield (
            f"critic.source=program: task.domain={task.domain} has no program that criticises: set critic.source (or "
            "that of a critic.schedule stage) to self, model or api, or kind=indicative_gt"
        )
    elif critic.noise:
        yield (
            f"critic.noise={critic.noise}: task.kind=file has no misleading critiques to put in a program's place: "
            "set critic.noise=0"
        )


def _rewards(critic: CriticConfig) -> Iterator[str]:
    """Steps without a critic are rewarded by the verifier, but some step must have one."""
    templates = [stage.kind for stage in critic.stages if stage.kind in ("indicative", "indicative_gt")]
    if templates or not critic.criticises:
        yield (
            f"reward.source=critique: critic.kind={templates[0] if templates else critic.kind} concludes nothing of "
            "its own: set critic.kind=cot, or reward.source=verifier"
        )


def _api(api: ApiConfig) -> Iterator[str]:
    if api.model is None:
        yield "critic.api.model=null: critic.source=api asks a model by its name: set the one that the server serves"
    url = urlsplit(api.base_url or "")
    if url.scheme not in ("http", "https") or not url.hostname:
        yield f"critic.api.base_url={api.base_url}: is no server's address: set one such as http://localhost:8000/v1"
    elif url.username or url.password or url.query:
        # Said without the value, which would put the credentials into a log.
        yield "critic.api.base_url: contains credentials or a query: name the key's variable in critic.api.api_key_env"

"""Shapes of published models that are not downloaded yet, so that a recipe can be checked and planned without weights.

``published/NAME.json`` has those keys of the model's ``config.json`` that make its shape, as its card on the hub gives
them. NAME is the last component of the model's name there, and of the directory that a recipe wants it in.
"""

from __future__ import annotations

from pathlib import Path

from megatron_cgrpo.config.config_json import ConfigJson
from megatron_cgrpo.config.hf_config import shape_of
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.shape import ModelShape

FACTS = Path(__file__).parent / "published"


def published_shape(directory: Path, field: str = "model.path") -> ModelShape | None:
    """The shape of the model that ``directory`` is to hold; None where it exists, or is named after no such model."""
    facts = _facts(directory)
    return None if facts is None else shape_of(ConfigJson(read_json_object(facts), facts, field))


def download_command(directory: Path) -> str | None:
    """What brings the published model into ``directory``; None where :func:`published_shape` is."""
    facts = _facts(directory)
    if facts is None:
        return None
    return f"hf download {read_json_object(facts)['_name_or_path']} --local-dir {directory}"


def _facts(directory: Path) -> Path | None:
    facts = FACTS / f"{directory.name}.json"
    return facts if facts.is_file() and not directory.exists() else None

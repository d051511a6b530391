"""Validation errors in a user's words: the dotted key, the value given, and what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.section import Section
from megatron_cgrpo.config.task import TaskConfig

_TASKS: dict[str, type[Section]] = {
    get_args(member.model_fields["kind"].annotation)[0]: member for member in get_args(get_args(TaskConfig)[0])
}


def explain(error: ValidationError) -> list[str]:
    """One sentence a problem."""
    return [sentence for detail in error.errors() for sentence in _sentences(detail)]


def valid_keys() -> list[str]:
    """Every dotted key that a recipe may set."""
    keys = set(_keys(Recipe, ""))
    for task in _TASKS.values():
        keys.update(_keys(task, "task."))
    return sorted(keys)


def _keys(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            yield from _keys(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name


def _sentences(detail: ErrorDetails) -> Iterator[str]:
    location = [str(part) for part in detail["loc"]]
    if location[:1] == ["task"] and location[1:2] and location[1] in _TASKS:
        del location[1]  # pydantic names the member of the union between the section and its key
    key, value = ".".join(location), detail["input"]
    if detail["type"] == "extra_forbidden":
        for unknown in _leaves(key, value):
            yield f"{unknown}: no such key; the nearest is {_nearest(unknown)}"
    elif detail["type"] == "missing":
        yield f"{key}: is missing and has no default: set it"
    elif detail["type"].startswith("union_tag"):
        kind = value.get("kind") if isinstance(value, dict) else value
        yield f"task.kind: {_shown(kind)} is not allowed; choose one of {', '.join(_TASKS)}"
    elif detail["type"] in ("model_type", "model_attributes_type"):
        inner = _nearest(key + ".")
        yield f"{key}: {_shown(value)} is not allowed; it is a section with keys of its own, such as {inner}"
    elif isinstance(value, dict):
        yield f"{key}: {_allowed(detail)}"
    else:
        yield f"{key}: {_shown(value)} is not allowed; {_allowed(detail)}"


def _leaves(key: str, value: Any) -> Iterator[str]:
    """A misspelt section is reported by the keys under it, which say more than its name."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves(f"{key}.{name}", below)
    else:
        yield key


def _nearest(unknown: str) -> str:
    """The likeliest key meant: a sibling that is spelt alike, the same name elsewhere, or the closest spelling."""
    keys = valid_keys()
    section, _, name = unknown.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == section}
    if spelt_alike := difflib.get_close_matches(name, siblings, n=1):
        return siblings[spelt_alike[0]]
    same_name = [key for key in keys if key.rpartition(".")[2] == name]
    return difflib.get_close_matches(unknown, same_name or keys, n=1, cutoff=0)[0]


def _allowed(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ").replace("Input should", "it should")


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError:
        return repr(value)

"""Where configuration values come from: recipe files with inheritance, presets, and ``a.b=c`` overrides.

Each source gives a *layer*, a nested dictionary that is not validated yet; ``merge`` puts one on top of another.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_cgrpo.config.algorithm import preset_file
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import MisconceptionsConfig

Layer = dict[str, Any]
PRESETS = Path(__file__).parent / "presets"
DEFAULT_TASK = MisconceptionsConfig().kind


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key written twice: {', '.join(repeated)}", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def read_layers(path: Path) -> list[Layer]:
    """The recipe at ``path`` and what it extends, base first.

    Raises ConfigError for a missing or unreadable file, bad YAML, and recipes that extend each other in a circle.
    """
    layers: list[Layer] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        resolved = current.resolve()
        if resolved in seen:
            chain = " -> ".join(str(p) for p in [*seen, resolved])
            raise ConfigError(f"extends: recipes extend each other in a circle ({chain}): remove one `extends`")
        seen.append(resolved)
        layer = read_yaml(current)
        parent = layer.pop("extends", None)
        if parent is not None and not isinstance(parent, str):
            raise ConfigError(f"extends: {parent!r} in {current} is not a file name: name one recipe")
        layers.insert(0, layer)
        current = None if parent is None else current.parent / parent
    return layers


def read_yaml(path: Path) -> Layer:
    """A YAML mapping; an empty file is an empty one."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"recipe {path}: cannot be read ({reason}): check the path") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path}: is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"recipe {path}: must be a mapping of sections, such as `train: {{steps: 10}}`")
    return content


def read_overrides(overrides: Sequence[str]) -> Layer:
    """``["train.steps=10"]`` → ``{"train": {"steps": 10}}``. Values are YAML; the last of equal keys counts."""
    layer: Layer = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"override {override!r}: is not key=value, such as train.steps=10")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: its value is not valid YAML: quote it") from error
        for key in reversed(keys):
            value = {key: value}
        merge(layer, value)
    return layer


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: object) -> Layer:
    names, file = preset_names(), preset_file(str(name))
    if file not in names:
        near = difflib.get_close_matches(file, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"algorithm.preset: {name!r} is no preset: choose one of {', '.join(names)}{hint}")
    return read_yaml(PRESETS / f"{file}.yaml")


def named_preset(layer: Mapping[str, Any]) -> object | None:
    algorithm = layer.get("algorithm")
    return algorithm.get("preset") if isinstance(algorithm, Mapping) else None


def merge(below: Layer, above: Mapping[str, Any]) -> None:
    """Put ``above`` on ``below``, in place, key by key. A task of another kind replaces the one below whole."""
    for key, value in above.items():
        current = below.get(key)
        if isinstance(current, dict) and value is None:
            continue  # a section's bare heading sets nothing
        if not isinstance(value, Mapping):
            below[key] = value
            continue
        if not isinstance(current, dict) or (key == "task" and _kind(value, _kind(current)) != _kind(current)):
            current = below[key] = {}
        merge(current, value)


def _kind(task: Mapping[str, Any], default: object = DEFAULT_TASK) -> object:
    return task.get("kind", default)

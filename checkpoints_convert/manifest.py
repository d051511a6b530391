"""``conversion.json``: what a converted directory holds and how it was made.

Nothing in it depends on when or where the conversion ran: the same input gives the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from checkpoints_convert.digest import TensorRecord
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_json
from megatron_cgrpo.weights.layout import CheckpointLayout

MANIFEST = "conversion.json"
FORMAT = 1
_PACKAGES = ("torch", "megatron-core", "safetensors")


@dataclass(frozen=True)
class Manifest:
    """``tensors`` are the Hugging Face tensors, as converted; ``stored_dtypes`` those of the input, with their counts.

    ``layout`` is None for a Hugging Face directory.
    """

    kind: Literal["huggingface", "megatron"]
    architecture: str
    parameters: int
    stored_dtypes: dict[str, int]
    layout: CheckpointLayout | None
    tensors: dict[str, TensorRecord]

    def write(self, directory: Path) -> None:
        packages = {name: version(name) for name in _PACKAGES}
        write_json(directory / MANIFEST, {"format": FORMAT, "packages": packages, **asdict(self)})


def read_manifest(directory: Path) -> Manifest | None:
    """None where there is none. Raises ConfigError for one that is damaged or of another format."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        content.pop("packages")
        layout = content["layout"]
        return Manifest(
            **content
            | {
                "layout": None if layout is None else CheckpointLayout(**layout),
                "tensors": {name: TensorRecord(**tensor) for name, tensor in content["tensors"].items()},
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it to go without its hashes") from error

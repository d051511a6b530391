"""Whether a checkpoint holds the tensors of an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import find
from megatron_cgrpo.weights.families import HF_EMBEDDING, HF_HEAD, model_weights
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.tensor_spec import TensorSpec

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")
"""Of the Megatron keys that are a model's; what training adds has others."""

_ROTARY_BUFFER = ".rotary_emb.inv_freq"  # in old Llama files: what every implementation computes itself
_SHOWN = 8  # problems that one message lists


@dataclass
class Coverage:
    """``sound``: the names that are there with the right shape."""

    sound: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def require(self, directory: Path, shape: ModelShape) -> None:
        """Raises ConfigError listing the problems, if there are any."""
        if self.problems:
            more = f", and {len(self.problems) - _SHOWN} more" if len(self.problems) > _SHOWN else ""
            raise ConfigError(
                f"{directory} does not match its config.json, {shape.architecture}: "
                f"{'; '.join(self.problems[:_SHOWN])}{more}: use the config.json that belongs to the weights"
            )

    def _note(self, name: str, found: tuple[int, ...], size: tuple[int, ...]) -> None:
        if found == size:
            self.sound.add(name)
        else:
            self.problems.append(f"{name} has shape {list(found)}, not {list(size)}")


def check_hf(checkpoint: HFCheckpoint, shape: ModelShape) -> None:
    """Raises ConfigError unless ``checkpoint`` holds ``shape`` and nothing else that would be left out."""
    hf_coverage(checkpoint, shape).require(checkpoint.model_dir, shape)
    if not is_tied(checkpoint, shape):
        raise ConfigError(
            f"{checkpoint.model_dir}: tie_word_embeddings=true, but {HF_HEAD} differs from {HF_EMBEDDING}: set "
            "tie_word_embeddings=false in config.json to keep both, or remove the tensor"
        )


def is_tied(checkpoint: HFCheckpoint, shape: ModelShape) -> bool:
    """Whether a head that the architecture ties is a copy, where the checkpoint has one."""
    if not shape.tied_embeddings or not {HF_HEAD, HF_EMBEDDING} <= checkpoint.names():
        return True
    return torch.equal(checkpoint.read(HF_HEAD), checkpoint.read(HF_EMBEDDING))


def hf_coverage(checkpoint: HFCheckpoint, shape: ModelShape) -> Coverage:
    """A second copy of a tied head is accepted: whether it is one, ``is_tied`` tells."""
    expected, found = hf_shapes(shape), checkpoint.names()
    coverage = Coverage()
    for name, size in expected.items():
        if name not in found:
            coverage.problems.append(f"{name} is missing")
        else:
            coverage._note(name, checkpoint.shape(name), size)
    tolerated = {HF_HEAD} if shape.tied_embeddings else set()
    unexpected = {name for name in found if not name.endswith(_ROTARY_BUFFER)} - expected.keys() - tolerated
    coverage.problems += [f"{name} is not of this architecture" for name in sorted(unexpected)]
    return coverage


def megatron_coverage(tensors: Mapping[str, TensorSpec], shape: ModelShape) -> Coverage:
    """Vocabulary padding is accepted, and what training adds to a model passed over."""
    coverage, seen = Coverage(), set()
    for weight in model_weights(shape):
        spot = find(weight, shape, tensors)
        if spot.key in seen:
            continue
        seen.add(spot.key)
        spec, size = tensors.get(spot.key), (*spot.axes, *weight.size(shape))
        if spec is None:
            coverage.problems.append(f"{spot.key} is missing")
            continue
        if weight.vocab and len(spec.shape) == len(size):
            size = (max(spec.shape[0], size[0]), *size[1:])
        coverage._note(spot.key, spec.shape, size)
    unexpected = {key for key in tensors if key.startswith(MODEL_PREFIXES)} - seen
    coverage.problems += [f"{key} is not of this architecture" for key in sorted(unexpected)]
    return coverage

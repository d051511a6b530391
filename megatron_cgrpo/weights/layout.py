"""Which rank of a Megatron layout holds which part of which weight, without starting any rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.config.tensor_parallel import expert_parallel_problems, tensor_parallel_problems
from megatron_cgrpo.weights.families import EMBEDDING
from megatron_cgrpo.weights.mapping import padded_vocab
from megatron_cgrpo.weights.rows import Rows, count_rows, join_rows, take_rows
from megatron_cgrpo.weights.shards import Split
from megatron_cgrpo.weights.weight import Weight


@dataclass(frozen=True)
class Chunk:
    """The part of a whole (padded) Megatron tensor that one rank stores; ``offset`` is that of its first element."""

    rank: int
    offset: tuple[int, ...]
    tensor: Tensor


@dataclass(frozen=True)
class CheckpointLayout:
    """Sizes along Megatron's axes. Ranks are numbered as Megatron does: tensor, then expert, then pipeline parallel.

    ``first_stage_layers`` and ``last_stage_layers`` are Megatron's ``num_layers_in_first_pipeline_stage`` and
    ``..._last_...``; the other stages share what is left evenly. Experts are split over tensor-parallel ranks too, as
    Megatron does unless it is told another ``expert_tensor_parallel_size``. The vocabulary is padded to a multiple of
    ``vocab_divisor * tp`` (Megatron's ``make_vocab_size_divisible_by``).
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None
    vocab_divisor: int = 1

    def check(self, shape: ModelShape) -> None:
        """Raises ConfigError listing all reasons for which Megatron could not run ``shape`` in this layout."""
        if problems := [*self._sizes(), *self._axis_problems(shape), *self._stage_problems(shape)]:
            raise ConfigError(problems)

    def padded_vocab(self, vocab: int) -> int:
        """Rows of the embedding after padding."""
        return padded_vocab(vocab, self.vocab_divisor * self.tp)

    def stage_layers(self, layers: int) -> list[int]:
        """Number of layers on each pipeline stage."""
        first, last = self.first_stage_layers, self.last_stage_layers
        if self.pp == 1:
            return [layers]
        given = [count for count in (first, last) if count is not None]
        share = (layers - sum(given)) // max(self.pp - len(given), 1)
        middle = [share] * (self.pp - len(given))
        return [*given[: first is not None], *middle, *(given[-1:] if last is not None else [])]

    def stage(self, weight: Weight, layers: int) -> int:
        """The pipeline stage that holds ``weight``. With virtual stages a stage holds several runs of layers."""
        if weight.layer is None:
            return 0 if weight.megatron == EMBEDDING else self.pp - 1
        start = 0
        per_stage = self.stage_layers(layers)
        for _ in range(self.vpp):
            for stage, count in enumerate(per_stage):
                start += count // self.vpp
                if weight.layer < start:
                    return stage
        raise ValueError(f"layer {weight.layer} of {layers} is on no stage of {self}")

    def chunks(self, weight: Weight, pieces: Rows, shape: ModelShape) -> Iterator[Chunk]:
        """What each rank stores of the tensor that ``pieces`` are when joined along dimension 0.

        Chunks are views where they can be. What is replicated is stored once, by the first rank that holds it.
        """
        first_rank = self.tp * (self._expert_rank(weight, shape) + self.ep * self.stage(weight, shape.layers))
        split = weight.shard
        if not isinstance(split, Split):
            yield Chunk(first_rank, (0,) * pieces[0].dim(), join_rows(pieces))
            return
        if weight.vocab and (padding := self.padded_vocab(shape.vocab) - shape.vocab):
            pieces = [*pieces, pieces[0].new_zeros(padding, *pieces[0].shape[1:])]
        rest = (0,) * (pieces[0].dim() - 1)
        whole = join_rows(pieces) if split.dim == 1 else None
        for tp_rank in range(self.tp):
            if whole is None:
                for start, stop in split.ranges(count_rows(pieces), tp_rank, self.tp):
                    yield Chunk(first_rank + tp_rank, (start, *rest), join_rows(take_rows(pieces, start, stop)))
            else:
                [(start, stop)] = split.ranges(whole.shape[1], tp_rank, self.tp)
                yield Chunk(first_rank + tp_rank, (0, start), whole[:, start:stop])

    def _expert_rank(self, weight: Weight, shape: ModelShape) -> int:
        if weight.expert is None or shape.experts is None:
            return 0
        return weight.expert * self.ep // shape.experts.count

    def _sizes(self) -> Iterator[str]:
        for name in ("tp", "pp", "vpp", "ep", "vocab_divisor"):
            if (size := vars(self)[name]) < 1:
                yield f"{name}={size}: sizes are 1 or more: choose one"

    def _axis_problems(self, shape: ModelShape) -> Iterator[str]:
        if self.tp < 1 or self.ep < 1:
            return
        yield from tensor_parallel_problems(shape, "tp", self.tp)
        yield from expert_parallel_problems(shape, f"tp={self.tp}", self.tp)
        experts = shape.experts
        if self.ep > 1 and experts is None:
            yield f"ep={self.ep}: {shape.architecture} has no experts: leave it at 1"
        elif experts is not None and experts.count % self.ep:
            yield f"ep={self.ep}: does not divide the model's {experts.count} experts: choose a divisor"

    def _stage_problems(self, shape: ModelShape) -> Iterator[str]:
        if self.pp < 1 or self.vpp < 1:
            return
        uneven = {"first_stage_layers": self.first_stage_layers, "last_stage_layers": self.last_stage_layers}
        given = {name: count for name, count in uneven.items() if count is not None}
        if self.pp == 1:
            if self.vpp > 1:
                yield f"vpp={self.vpp}: interleaves pipeline stages: set pp > 1, or vpp=1"
            for name, count in given.items():
                yield f"{name}={count}: there is one stage (pp=1): set pp > 1, or leave it out"
            return
        if too_small := {name: count for name, count in given.items() if count < 1}:
            yield f"{too_small}: a stage has 1 layer or more: choose one"
            return
        others, left = self.pp - len(given), shape.layers - sum(given.values())
        if left < others or (others and left % others) or (not others and left):
            yield (
                f"pp={self.pp}{''.join(f', {name}={count}' for name, count in given.items())}: the model's "
                f"{shape.layers} layers leave {left} for the other {others} stages, which share them evenly: choose pp "
                "to divide them, or give first_stage_layers and last_stage_layers so that the rest divides"
            )
        elif not others and self.vpp > 1:
            yield (
                f"vpp={self.vpp}: Megatron interleaves stages only where one has a share of what is left: leave out "
                "first_stage_layers or last_stage_layers"
            )
        elif any(count % self.vpp for count in self.stage_layers(shape.layers)):
            yield (
                f"vpp={self.vpp}: does not divide the {self.stage_layers(shape.layers)} layers of the stages: "
                "choose a divisor"
            )

"""Megatron's logits against those of ``transformers``, both in float32, each in processes of its own."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from checkpoints_convert.available_memory import available_memory
from checkpoints_convert.verify_report import Check
from megatron_cgrpo.config.errors import ConfigError, RunError
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.model_files import CONFIG, has_tokenizer
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.tensor_spec import TensorSpec, dtype_name

TOLERANCE = 1e-4
"""Of the largest difference, relative to the largest logit. Two right implementations differ by some 1e-6 in float32,
rounding to bfloat16 by 1e-2."""

_LENGTHS = (16, 64, 256)  # tokens; rotary scaling shows in the longer ones
_PROCESS_BYTES = 1_000_000_000  # interpreter, torch, Megatron or transformers
_SHOWN = 40  # characters of a prompt in a message
_BLOCK = 64  # positions whose distributions exist in float64 at a time


@dataclass(frozen=True)
class LogitsOptions:
    """``prompts``: texts; none means random tokens. ``tp`` and ``pp`` arrange as many local processes as they need."""

    prompts: tuple[str, ...] = ()
    tp: int = 1
    pp: int = 1

    @classmethod
    def parse(cls, logits: bool, prompts: list[str] | None, tp: int, pp: int) -> LogitsOptions | None:
        """None without ``logits``. Raises ConfigError where the others are given all the same."""
        if not logits and (prompts or tp > 1 or pp > 1):
            raise ConfigError("--prompt, --tp and --pp: say how logits are compared: add --logits, or leave them out")
        return cls(tuple(prompts or ()), tp, pp) if logits else None

    @property
    def parallel(self) -> ParallelConfig:
        return ParallelConfig(tp=self.tp, pp=self.pp)


def prepare_logits(hf: Path, shape: ModelShape, options: LogitsOptions) -> list[list[int]]:
    """The token sequences to compare. Raises ConfigError where the comparison cannot run, before it loads anything."""
    CheckpointLayout(tp=options.tp, pp=options.pp).check(shape)
    if "quantization_config" in read_json_object(hf / CONFIG):
        raise ConfigError(
            f"--logits: transformers does not run the FP8 weights of {hf} everywhere: convert the Megatron checkpoint "
            "with mcgrpo convert megatron-to-hf, and name that directory with --hf"
        )
    if options.prompts:
        sequences = _tokenize(hf, shape, options.prompts)
    else:
        generator = torch.Generator().manual_seed(0)
        lengths = sorted({min(length, shape.max_positions) for length in _LENGTHS})
        sequences = [torch.randint(0, shape.vocab, (length,), generator=generator).tolist() for length in lengths]
    _check_memory(shape, options, sum(map(len, sequences)))
    return sequences


def check_logits(
    hf: Path,
    megatron: Path,
    shape: ModelShape,
    sequences: list[list[int]],
    parallel: ParallelConfig,
    rounding: torch.dtype | None = None,
) -> Check:
    """``shape`` is that of the Megatron model, which runs in ``parallel``.

    ``rounding``: both models' parameters get the precision of this type first, where one side is a cast. Raises
    RunError where one of the processes fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        expected, found = Path(folder) / "transformers.pt", Path(folder) / "megatron.pt"
        world = parallel.world_size
        meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        _spawn("Megatron", world, _megatron, meeting.port, parallel, megatron, shape, sequences, rounding, found)
        _spawn("transformers", 1, _transformers, hf, sequences, rounding, expected)
        pairs = list(zip(_load(expected), _load(found), strict=True))
    for theirs, ours in pairs:
        if theirs.shape != ours.shape:
            raise RunError(f"logits of shape {list(ours.shape)} in Megatron, {list(theirs.shape)} in transformers")
    measures = _measure(pairs)
    detail = (
        f"{sum(map(len, sequences))} tokens in {len(sequences)} sequences, tp={parallel.tp}, pp={parallel.pp}, float32"
        f"{f' from {dtype_name(rounding)}' if rounding else ''}: largest difference {measures['max_abs']:.2g}, "
        f"{measures['max_relative']:.2g} of the largest logit (at most {TOLERANCE:g}); the likeliest token agrees at "
        f"{measures['argmax_agreement']:.2%}; mean KL {measures['mean_kl']:.2g} nats"
    )
    agree = measures["max_relative"] <= TOLERANCE  # false for NaN, which JSON does not know either
    finite = {name: value for name, value in measures.items() if math.isfinite(value)}
    return Check("logits", "passed" if agree else "failed", detail, measures=finite | {"tolerance": TOLERANCE})


def _measure(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Over (transformers, Megatron), each [tokens, vocabulary]; KL is of transformers' distribution from Megatron's."""
    largest = max(float(expected.abs().max()) for expected, _ in pairs)
    differences = torch.stack([(expected - found).abs().max() for expected, found in pairs])
    agreeing, divergence, tokens = 0, 0.0, sum(len(expected) for expected, _ in pairs)
    for expected, found in pairs:
        agreeing += int((expected.argmax(-1) == found.argmax(-1)).sum())
        for a, b in zip(expected.split(_BLOCK), found.split(_BLOCK), strict=True):
            p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
            divergence += float((p.exp() * (p - q)).sum())
    return {
        "max_abs": float(differences.max()),
        "max_relative": float(differences.max()) / max(largest, torch.finfo(torch.float32).tiny),
        "argmax_agreement": agreeing / tokens,
        "mean_kl": divergence / tokens,
    }


def _check_memory(shape: ModelShape, options: LogitsOptions, tokens: int) -> None:
    """One model after the other is in memory; a tied embedding is on the last stage too."""
    weights = sum(TensorSpec(torch.float32, size).nbytes for size in hf_shapes(shape).values())
    world = options.parallel.world_size
    copies = 4 * shape.vocab * shape.hidden if shape.tied_embeddings and options.pp > 1 else 0
    logits = 4 * 4 * shape.vocab * tokens  # of both models, and while shards are joined
    needed = weights + copies + logits + world * _PROCESS_BYTES
    available = available_memory()
    if available is not None and needed > available:
        raise ConfigError(
            f"--logits: needs {needed / 1e9:.1f} GB of memory for the model in float32 and {world} processes, and "
            f"{available / 1e9:.1f} GB are available: use a machine with more, or leave out --logits"
        )


def _tokenize(hf: Path, shape: ModelShape, prompts: tuple[str, ...]) -> list[list[int]]:
    if not has_tokenizer(hf):
        raise ConfigError(f"--prompt: {hf} has no tokenizer: add its files, or leave out --prompt for random tokens")
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(hf), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken tokenizer raises whatever its format's parser raises
        raise ConfigError(f"{hf}: the tokenizer cannot be read ({error}): download its files again") from error
    sequences = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    for prompt, tokens in zip(prompts, sequences, strict=True):
        if not 1 <= len(tokens) <= shape.max_positions or max(tokens) >= shape.vocab:
            raise ConfigError(
                f"--prompt {prompt[:_SHOWN]!r}: has {len(tokens)} tokens with ids up to {max(tokens, default=-1)}, and "
                f"the model takes 1 to {shape.max_positions} with ids below {shape.vocab}: choose another"
            )
    return sequences


def _spawn(what: str, world: int, function: Any, *args: Any) -> None:
    """Processes of their own leave no memory behind. Raises RunError with the reason where one fails."""
    try:
        spawn(_call, (function, world, args), nprocs=world)
    except ProcessRaisedException as error:
        raise RunError(f"{what}: {str(error).strip().splitlines()[-1]}") from error
    except ProcessExitedException as error:
        raise RunError(f"{what}: {error}: if it was killed, memory ran out") from error


def _call(rank: int, function: Any, world: int, args: tuple[Any, ...]) -> None:
    os.dup2(2, 1)  # the report has stdout for itself
    warnings.simplefilter("ignore")  # Megatron and torch deprecate each other's calls
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    function(rank, *args)


@torch.no_grad()
def _transformers(rank: int, hf: Path, sequences: list[list[int]], rounding: torch.dtype | None, target: Path) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    dtype = rounding or torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(
        hf, dtype=dtype, local_files_only=True, trust_remote_code=False, attn_implementation="eager"
    )
    model = model.float().eval()
    torch.save([model(torch.tensor([tokens])).logits[0] for tokens in sequences], target)


def _megatron(
    rank: int,
    port: int,
    parallel: ParallelConfig,
    directory: Path,
    shape: ModelShape,
    sequences: list[list[int]],
    rounding: torch.dtype | None,
    target: Path,
) -> None:
    """On the GPUs where there is one for each process."""
    if torch.cuda.device_count() < parallel.world_size:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from megatron_cgrpo.actor.logits import checkpoint_logits
    from megatron_cgrpo.actor.parallel import Endpoint

    endpoint = Endpoint("127.0.0.1", port)
    found = checkpoint_logits(rank, endpoint, parallel, directory, shape, sequences, rounding)
    if found:
        torch.save(found, target)


def _load(path: Path) -> list[Tensor]:
    return list(torch.load(path, weights_only=True))

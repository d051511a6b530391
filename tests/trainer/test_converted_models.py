"""A converted checkpoint as ``model.path``: real ranks and real engines, against ``transformers`` with the original."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from megatron_cgrpo.config.model_shape import QWEN2, QWEN3_MOE, Experts, ModelShape, hf_config
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.trainer.checkpoints import BaseModel, CheckpointStore
from megatron_cgrpo.trainer.same_training import model_fingerprint
from megatron_cgrpo.trainer.signals import StopSignal
from megatron_cgrpo.trainer.system import System, start_system
from megatron_cgrpo.types import Completion, TrainRow
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.layout import CheckpointLayout

EOS, PAD, VOCAB, LENGTH = 1, 0, 61, 20
PROMPTS = [[5, 6, 7, 8], [20, 21], [9] * 30, [33, 12, 7]]
CLEAR = 1e-2
"""How far the likeliest token's logit is above the next at least: a hundred times the rounding that tests allow."""

_QWEN2 = ModelShape(QWEN2, 3, 4, 2, 32, 128, 96, VOCAB, 128, tied_embeddings=True)
_EXPERTS = Experts(count=4, per_token=2, ffn=64)
_QWEN3_MOE = ModelShape(QWEN3_MOE, 3, 4, 2, 32, 64, 96, VOCAB, 128, experts=_EXPERTS)
# (shape, seed whose model is always clear about its next token, layout of the converted files)
MODELS = {
    "qwen2_tied": (_QWEN2, 10, CheckpointLayout(tp=2, pp=2, first_stage_layers=1, vocab_divisor=16)),
    "qwen3_moe": (_QWEN3_MOE, 3, CheckpointLayout(tp=2, pp=3, ep=2)),
}


def random_tensors(shape: ModelShape, seed: int) -> dict[str, Tensor]:
    """So large that what is generated depends on every layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(size, generator=generator) for name, size in hf_shapes(shape).items()}
    return {name: 1 + 0.2 * tensor if "norm" in name else 0.3 * tensor for name, tensor in tensors.items()}


def write_model(directory: Path, shape: ModelShape, tensors: dict[str, Tensor]) -> Path:
    words = {f"w{number}": number for number in range(shape.vocab)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", eos_token="w1", unk_token="w2"
    )
    tokenizer = directory.with_name(f"{directory.name}_tokenizer")
    fast.save_pretrained(tokenizer)
    write_hf_directory(
        directory, tensors.items(), hf_shapes(shape), torch.float32, hf_config(shape, EOS, PAD), tokenizer
    )
    return directory


@torch.no_grad()
def greedy(directory: Path) -> tuple[list[list[int]], float]:
    """What ``transformers`` generates after each prompt, and the smallest lead of a chosen token's logit."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    texts, lead = [], float("inf")
    for prompt in PROMPTS:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + LENGTH and EOS not in tokens[len(prompt) :]:
            best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
            lead = min(lead, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
        texts.append(tokens[len(prompt) :])
    return texts, lead


@torch.no_grad()
def logprobs_by_transformers(directory: Path, answers: list[Completion]) -> list[list[float]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    result = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        scores = model(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        result.append(scores.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0].tolist())
    return result


def recipe(model: Path) -> Recipe:
    sizes = {"max_prompt_tokens": 32, "max_response_tokens": LENGTH, "max_critique_tokens": 8, "kv_cache_mib": 32}
    rollout = sizes | {"max_concurrent_sequences": 8, "engines": 1}
    return Recipe.model_validate({"model": {"path": model}, "rollout": rollout, "optimizer": {"lr": 1e-2}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds each model as NAME, converted as NAME_megatron."""
    folder = tmp_path_factory.mktemp("models")
    for name, (shape, seed, layout) in MODELS.items():
        write_model(folder / name, shape, random_tensors(shape, seed))
        hf_to_megatron(folder / name, folder / f"{name}_megatron", layout, Options())
    return folder


@pytest.fixture(scope="module")
def systems(folder: Path) -> Iterator[dict[str, System]]:
    """Trainer and engine of each converted model, started side by side; the engines serve version 0."""
    with ray_cluster(2 * len(MODELS)), ExitStack() as stack, ThreadPoolExecutor(len(MODELS)) as threads:

        def start(name: str) -> System:
            model = folder / f"{name}_megatron"
            return stack.enter_context(start_system(recipe(model), model, StopSignal(), reference=True))

        found = dict(zip(MODELS, threads.map(start, MODELS), strict=True))
        for system in found.values():
            system.actor.push(0)
        yield found


def completions(system: System) -> list[Completion]:
    async def run() -> list[list[Completion]]:
        requests = [GenerateRequest(prompt, 1, 0, LENGTH, temperature=0) for prompt in PROMPTS]
        return await asyncio.gather(*(system.pool.generate(request) for request in requests))

    return [completion for [completion] in asyncio.run(run())]


def rows(answers: list[Completion]) -> list[TrainRow]:
    return [
        TrainRow(prompt + answer.token_ids, len(prompt), 0.0, 0.01)
        for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_generates_what_transformers_does_with_the_original(
    folder: Path, systems: dict[str, System], name: str
) -> None:
    expected, lead = greedy(folder / name)
    assert lead > CLEAR
    answers = completions(systems[name])
    assert [answer.token_ids for answer in answers] == expected
    # The engine gets back what the converter read: a mapping that is wrong both ways shows in the trainer only.
    for found, answer in zip(systems[name].actor.logprobs(rows(answers)), answers, strict=True):
        assert found == pytest.approx(answer.logprobs, abs=1e-4)


Tensors = dict[str, Tensor]


def _swap(first: str, second: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({first: tensors[second], second: tensors[first]})


def _own_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0)


def _tie(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]


_LAYER = "model.layers.1."
_EXPERT = f"{_LAYER}mlp.experts."
DAMAGE: list[tuple[str, Callable[[Tensors], object]]] = [
    ("qwen2_tied", _swap(f"{_LAYER}self_attn.k_proj.weight", f"{_LAYER}self_attn.v_proj.weight")),
    ("qwen2_tied", _swap(f"{_LAYER}self_attn.k_proj.bias", f"{_LAYER}self_attn.v_proj.bias")),
    ("qwen2_tied", _swap(f"{_LAYER}mlp.gate_proj.weight", f"{_LAYER}mlp.up_proj.weight")),
    ("qwen2_tied", _own_head),
    ("qwen3_moe", _tie),
    ("qwen3_moe", _swap(f"{_EXPERT}0.gate_proj.weight", f"{_EXPERT}0.up_proj.weight")),
    ("qwen3_moe", _swap(f"{_EXPERT}0.down_proj.weight", f"{_EXPERT}1.down_proj.weight")),
    ("qwen3_moe", _swap(f"{_LAYER}self_attn.q_norm.weight", f"{_LAYER}self_attn.k_norm.weight")),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_a_wrong_mapping_would_change_what_is_generated(folder: Path, tmp_path: Path, number: int) -> None:
    """Else equal texts would prove little."""
    name, damage = DAMAGE[number]
    shape, seed, _ = MODELS[name]
    tensors = random_tensors(shape, seed)
    damage(tensors)
    if "lm_head.weight" in tensors:
        shape = replace(shape, tied_embeddings=False)
    assert greedy(write_model(tmp_path / "damaged", shape, tensors))[0] != greedy(folder / name)[0]


def test_what_was_trained_converts_back_to_what_the_engines_serve(
    folder: Path, systems: dict[str, System], tmp_path: Path
) -> None:
    base, system = folder / "qwen2_tied_megatron", systems["qwen2_tied"]
    actor, batch = system.actor, rows(completions(system))
    at_first = actor.logprobs(batch)
    actor.supervised_update(batch)
    actor.push(1)
    assert actor.logprobs(batch, reference=True) == at_first != actor.logprobs(batch)

    model, sampler = BaseModel(base, model_fingerprint(base)), SamplerState(seed=0, epoch=0, position=0, fingerprint="")
    step = CheckpointStore(tmp_path, 1).save(1, recipe(base), model, sampler, actor.save)
    megatron_to_hf(step, tmp_path / "hf", Options())
    megatron_to_hf(step / "policy", tmp_path / "from_policy", Options())
    actor.export_hf(tmp_path / "export", hf_config(_QWEN2, EOS, PAD), base)
    trained, exported = HFCheckpoint(tmp_path / "hf"), HFCheckpoint(tmp_path / "export")
    assert trained.names() == exported.names() == HFCheckpoint(folder / "qwen2_tied").names()
    for name in trained.names():
        assert torch.equal(trained.read(name), exported.read(name)), name
        assert torch.equal(trained.read(name), HFCheckpoint(tmp_path / "from_policy").read(name)), name
        assert not torch.equal(trained.read(name), HFCheckpoint(folder / "qwen2_tied").read(name)), name

    served = completions(system)
    for answer, expected in zip(served, logprobs_by_transformers(tmp_path / "hf", served), strict=True):
        assert (answer.weight_version, answer.logprobs) == (1, pytest.approx(expected, abs=1e-4))

    actor.initialise(seed=5)
    actor.load_base(step / "policy")  # as a model of its own
    actor.push(2)
    again = completions(system)
    assert [(answer.token_ids, answer.logprobs) for answer in again] == [(a.token_ids, a.logprobs) for a in served]

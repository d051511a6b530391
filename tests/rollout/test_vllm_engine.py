"""Real vLLM engines in Ray actors, fed by the real file sender, against ``transformers``.

The engines are shared by the session, so the tests run in this file's order: before the first push, pushes, deaths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from processes import left, running, titled
from tiny_qwen3 import hf_tensors, tiny_qwen3
from transformers import Qwen3ForCausalLM

from megatron_cgrpo.launch.placement import anywhere
from megatron_cgrpo.rollout.engine_spec import EngineSpec
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import EngineDied, EngineNotReady, EngineStartError, GenerateRequest
from megatron_cgrpo.rollout.ray_engine import start_engines
from megatron_cgrpo.rollout.weight_client import WeightClient
from megatron_cgrpo.types import Completion, FinishReason
from megatron_cgrpo.weights.transfer.file import FileSender

EOS = 1
PROMPTS = [[5, 6, 7, 8], [20, 21], [9] * 30, [33, 12, 7]]
LONG = 200
SEQUENCES = 64
"""What an engine of the fixture runs at once."""


@pytest.fixture(scope="module")
def sender(client: WeightClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileSender]:
    """Buckets far smaller than the model, so that every push takes several."""
    sender = FileSender(client, True, tmp_path_factory.mktemp("weights"), bucket_bytes=20_000)
    yield sender
    sender.close()


def generate(pool: EnginePool, *requests: GenerateRequest) -> list[list[Completion]]:
    async def run() -> list[list[Completion]]:
        return await asyncio.gather(*(pool.generate(request) for request in requests))

    return asyncio.run(run())


def greedy_by_transformers(model: Qwen3ForCausalLM, prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens and EOS not in tokens[len(prompt) :]:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def logprobs_by_transformers(
    model: Qwen3ForCausalLM, prompt: list[int], response: list[int], temperature: float
) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].tolist()


def test_an_engine_refuses_to_serve_before_the_first_push(pool: EnginePool) -> None:
    with pytest.raises(EngineNotReady, match="push weights before generating"):
        generate(pool, GenerateRequest([5], 1, seed=0, max_tokens=4))


def test_a_partial_first_push_is_refused_by_name(pool: EnginePool, sender: FileSender) -> None:
    tensors = hf_tensors(tiny_qwen3(0))
    removed = ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"]
    with pytest.raises(Exception, match=rf"missing {removed[0]}, {removed[1]}\. Push every weight"):
        sender.send(((name, tensor) for name, tensor in tensors.items() if name not in removed), version=1)
    with pytest.raises(EngineNotReady):
        generate(pool, GenerateRequest([5], 1, seed=0, max_tokens=4))


@pytest.mark.parametrize("version", [1, 2])
def test_after_a_push_greedy_output_is_that_of_transformers(pool: EnginePool, sender: FileSender, version: int) -> None:
    """Twice, with different weights: a tied output layer that keeps old weights would show in the second round."""
    model = tiny_qwen3(seed=10 + version)
    sender.send(hf_tensors(model).items(), version)
    results = generate(pool, *(GenerateRequest(prompt, 1, 0, 24, temperature=0) for prompt in PROMPTS))
    for prompt, [completion] in zip(PROMPTS, results, strict=True):
        assert completion.token_ids == greedy_by_transformers(model, prompt, 24)
        assert completion.logprobs == pytest.approx(
            logprobs_by_transformers(model, prompt, completion.token_ids, 1.0), abs=1e-4
        )
        assert completion.weight_version == version


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_sampling_distribution(
    pool: EnginePool, sender: FileSender, temperature: float
) -> None:
    model = tiny_qwen3(seed=3)
    sender.send(hf_tensors(model).items(), version=3)
    results = generate(pool, *(GenerateRequest(prompt, 8, 77, 48, temperature) for prompt in PROMPTS))
    reasons = set()
    for prompt, completions in zip(PROMPTS, results, strict=True):
        assert len(completions) == 8
        for completion in completions:
            expected = logprobs_by_transformers(model, prompt, completion.token_ids, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)
            assert completion.weight_version == 3
            stopped = completion.finish_reason is FinishReason.STOP
            assert completion.token_ids.count(EOS) == (completion.token_ids[-1] == EOS) == stopped
            assert stopped or len(completion.token_ids) == 48
            reasons.add(completion.finish_reason)
    assert reasons == set(FinishReason), "the test should see both ends"


def test_a_seed_gives_the_same_bits_alone_or_in_a_crowd(pool: EnginePool, sender: FileSender) -> None:
    """Tokens and log-probabilities, whatever the batch, the engine and the order of arrival."""
    sender.send(hf_tensors(tiny_qwen3(seed=4)).items(), version=4)
    requests = [GenerateRequest(PROMPTS[i % 4], 3, 1000 * i, 40) for i in range(40)]
    crowd = generate(pool, *requests)
    assert generate(pool, *reversed(requests))[::-1] == crowd
    for index in (0, 17, 39):
        assert generate(pool, requests[index])[0] == crowd[index]
        third = GenerateRequest(requests[index].prompt_ids, 1, requests[index].seed + 2, 40)
        assert generate(pool, third)[0] == crowd[index][2:]
    assert crowd[0] != crowd[4], "another seed is another sample"


def test_a_failed_push_closes_the_engines_until_the_next_complete_one(pool: EnginePool, sender: FileSender) -> None:
    tensors = hf_tensors(tiny_qwen3(seed=5))
    bad = dict(tensors)
    bad["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(Exception):  # noqa: B017  vLLM raises an assertion of its own
        sender.send(bad.items(), version=5)
    for engine in pool.engines:
        with pytest.raises(EngineNotReady, match="the last push failed"):
            asyncio.run(engine.generate(GenerateRequest([5], 1, seed=0, max_tokens=4)))
    model = tiny_qwen3(seed=6)
    sender.send(hf_tensors(model).items(), version=6)
    [[completion]] = generate(pool, GenerateRequest(PROMPTS[0], 1, 0, 16, temperature=0))
    assert completion.token_ids == greedy_by_transformers(model, PROMPTS[0], 16)
    assert completion.weight_version == 6


@pytest.mark.parametrize("same", [True, False], ids=["same weights", "other weights"])
def test_requests_in_flight_survive_a_push_and_say_what_sampled_which_token(
    pool: EnginePool, sender: FileSender, same: bool
) -> None:
    """Long requests run while the weights change; new ones come while the engines are closed, and wait."""
    before, after = (hf_tensors(tiny_qwen3(seed=8)), hf_tensors(tiny_qwen3(seed=8 if same else 9)))
    sender.send(before.items(), version=8)
    requests = [GenerateRequest([10, 11, 12], 1, seed, LONG) for seed in range(24)]
    undisturbed = generate(pool, *requests)

    async def run() -> tuple[list[list[Completion]], list[Completion]]:
        calls = [asyncio.create_task(pool.generate(request)) for request in requests]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        push = asyncio.create_task(asyncio.to_thread(sender.send, after.items(), 9))
        late = asyncio.create_task(pool.generate(GenerateRequest(PROMPTS[0], 1, 3, 16)))
        await push
        return await asyncio.gather(*calls), await late

    results, late = asyncio.run(run())
    assert late[0].finish_reason in FinishReason
    mixed = 0
    for [completion], [alone] in zip(results, undisturbed, strict=True):
        assert sum(span.tokens for span in completion.versions) == len(completion.token_ids)
        versions = [span.version for span in completion.versions]
        assert versions in ([8], [8, 9], [9])
        assert completion.weight_version == versions[0]
        mixed += len(versions) == 2
        old = completion.versions[0].tokens if versions[0] == 8 else 0
        kept = len(completion.token_ids) if same else old
        assert completion.token_ids[:kept] == alone.token_ids[:kept]
        assert completion.logprobs[:kept] == pytest.approx(alone.logprobs[:kept], abs=1e-5)
    assert mixed > 0, "the test should interrupt something"


def test_waiting_requests_are_taken_by_priority(pool: EnginePool, sender: FileSender) -> None:
    """One engine with more to do than it takes at once; of those behind, the urgent ones end first, that came last."""
    sender.send(hf_tensors(tiny_qwen3(seed=8)).items(), version=10)
    engine = pool.engines[0]
    ended: list[str] = []

    async def ask(name: str, seed: int, tokens: int, priority: int) -> None:
        await engine.generate(GenerateRequest([10, 11, 12], 1, seed, tokens, priority=priority))
        ended.append(name)

    async def run() -> None:
        await asyncio.gather(
            *(ask("ahead", seed, LONG, 0) for seed in range(4 * SEQUENCES)),
            *(ask("patient", seed, 8, 9) for seed in range(SEQUENCES)),
            *(ask("urgent", seed, 8, 1) for seed in range(SEQUENCES)),
        )

    asyncio.run(run())
    place = {name: [index for index, other in enumerate(ended) if other == name] for name in ("patient", "urgent")}
    assert sum(place["urgent"]) < sum(place["patient"])
    assert place["urgent"][SEQUENCES // 2] < place["patient"][0]


def test_an_engine_says_how_far_its_requests_are(pool: EnginePool) -> None:
    engine, seen = pool.engines[0], set()

    async def run() -> None:
        call = asyncio.create_task(engine.generate(GenerateRequest([10, 11, 12], 4, 0, LONG)))
        while not call.done():
            seen.add(await engine.decoded())
        total = sum(len(completion.token_ids) for completion in await call)
        assert await engine.decoded() == 0
        assert len(seen) > 3 and max(seen) <= total

    asyncio.run(run())


def test_requests_of_a_killed_engine_are_answered_by_the_other_with_the_same_bits(pool: EnginePool) -> None:
    requests = [GenerateRequest(prompt, 7, seed, 60) for seed, prompt in enumerate(PROMPTS * 8)]
    expected = generate(pool, *requests)

    async def run() -> list[list[Completion]]:
        calls = [asyncio.create_task(pool.generate(request)) for request in requests]
        await asyncio.sleep(0.02)
        ray.kill(pool.engines[0].handle, no_restart=False)
        return await asyncio.gather(*calls)

    assert asyncio.run(run()) == expected
    assert pool.lost == 1


def test_a_recovered_engine_serves_after_the_next_push(pool: EnginePool, sender: FileSender) -> None:
    asyncio.run(pool.recover())
    assert pool.lost == 1
    with pytest.raises(EngineNotReady):
        asyncio.run(pool.engines[0].generate(GenerateRequest([5], 1, 0, 4)))
    model = tiny_qwen3(seed=7)
    assert asyncio.run(pool.updating()) == pool.engines
    sender.send(hf_tensors(model).items(), version=7)
    asyncio.run(pool.updated())
    assert pool.lost == 0
    [completion] = asyncio.run(pool.engines[0].generate(GenerateRequest(PROMPTS[0], 1, 0, 16, temperature=0)))
    assert completion.token_ids == greedy_by_transformers(model, PROMPTS[0], 16)


def test_a_dead_engine_core_is_noticed_and_shutdown_leaves_nothing(pool: EnginePool) -> None:
    actors = titled(psutil.Process().children(recursive=True), "ray::VllmEngine")
    beneath = [process for actor in actors for process in actor.children(recursive=True)]
    cores = titled(beneath, "EngineCore")
    assert len(cores) == 2
    before = shared_memory()
    for core in cores:
        core.kill()
    for engine in pool.engines:
        with pytest.raises(EngineDied):
            asyncio.run(engine.generate(GenerateRequest(PROMPTS[0], 4, 0, 60)))
    asyncio.run(pool.shutdown())
    assert left(lambda: running([*actors, *beneath])) == []
    assert left(lambda: sorted(shared_memory() - before)) == []  # what other tests push comes and goes


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def test_the_cause_of_a_failed_start_comes_out_of_the_engine_core(cluster: None, spec: EngineSpec) -> None:
    with pytest.raises(EngineStartError, match="did not start: ValueError: Invalid weight transfer backend: pigeon"):
        start_engines(replace(spec, transfer_backend="pigeon"), anywhere(1, 1, gpu=False))

"""GRPO as one would write it in an afternoon: `transformers` generate, log-probabilities, AdamW. One process.

python -m benchmark.peers.transformers_loop JOB REPORT
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from benchmark.peers.job import Job, Report, arguments, packages, rewards
from torch import Tensor


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job, out = arguments()
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.lr, weight_decay=0.0)
    seconds: list[float] = []
    lengths: list[int] = []
    earned = 0.0
    for number, questions in enumerate(batches(job)):
        started = time.perf_counter()
        prompts = tokenizer([q for q in questions for _ in range(job.group)], return_tensors="pt", padding=True)
        responses = generate(model, tokenizer, prompts, job)
        mask = until_end(responses, tokenizer.eos_token_id)
        stopped = (responses.eq(tokenizer.eos_token_id) & mask).any(1).tolist()
        reward = torch.tensor(rewards(tokenizer.batch_decode(responses, skip_special_tokens=True), stopped))
        update(model, optimizer, prompts, responses, mask, advantages(reward, job.group), job)
        if number >= job.warm_up:
            seconds.append(time.perf_counter() - started)
            lengths += mask.sum(1).tolist()
            earned += reward.mean().item()
    Report(seconds, lengths, earned / job.steps, packages("torch", "transformers")).write(out)


def batches(job: Job) -> Iterator[list[str]]:
    for step in range(job.warm_up + job.steps):
        yield [job.questions[(step * job.prompts + k) % len(job.questions)] for k in range(job.prompts)]


def generate(model: Any, tokenizer: Any, prompts: Any, job: Job) -> Tensor:
    """[B, T] response tokens, padded after the end."""
    model.eval()
    with torch.no_grad():
        sequences: Tensor = model.generate(
            **prompts,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=job.max_response,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    return sequences[:, prompts["input_ids"].shape[1] :]


def until_end(responses: Tensor, eos: int) -> Tensor:
    """[B, T] bool: the tokens up to the first end of sequence, that one too."""
    ended = responses.eq(eos).int().cumsum(1)
    return (ended - responses.eq(eos).int()).eq(0)


def advantages(reward: Tensor, group: int) -> Tensor:
    """[B]: less the mean of the group (Dr. GRPO)."""
    return (reward.view(-1, group) - reward.view(-1, group).mean(1, keepdim=True)).flatten()


def update(
    model: Any, optimizer: torch.optim.Optimizer, prompts: Any, responses: Tensor, mask: Tensor, gain: Tensor, job: Job
) -> None:
    """One step on all of them. Micro-batches are cut to their longest response, and normalised by a constant."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    scale = 1 / (len(responses) * job.max_response)
    for part in torch.arange(len(responses)).split(job.micro_batch):
        own = mask[part]
        longest = int(own.sum(1).max())
        own, targets = own[:, :longest], responses[part, :longest]
        ids = torch.cat([prompts["input_ids"][part], targets], 1)
        attention = torch.cat([prompts["attention_mask"][part], own.long()], 1)
        logits = model(input_ids=ids, attention_mask=attention, logits_to_keep=longest + 1).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        ratio, each = (logp - logp.detach()).exp(), gain[part].unsqueeze(1)
        clipped = ratio.clamp(1 - job.clip, 1 + job.clip)
        loss = -(torch.minimum(ratio * each, clipped * each) * own).sum() * scale
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), job.grad_clip)
    optimizer.step()


if __name__ == "__main__":
    main()

"""The same with TRL's GRPOTrainer and its default generation, `transformers` generate; needs `requirements.txt`.

python -m benchmark.peers.trl_trainer JOB REPORT
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from benchmark.peers.job import ANSWER, Job, Report, arguments, packages, rewards


def main() -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOTrainer

    job, out = arguments()
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    watch = stopwatch()
    count = Count(tokenizer.eos_token_id, skip=job.warm_up * job.samples)
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=count.reward,
            args=settings(job, directory),
            train_dataset=Dataset.from_dict({"prompt": job.questions, "answer": [ANSWER] * len(job.questions)}),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        trainer.train()
    used = packages("torch", "transformers", "accelerate", "trl")
    Report(watch.seconds[job.warm_up :], count.lengths, count.earned / len(count.lengths), used).write(out)


def settings(job: Job, directory: str) -> Any:
    """Of GRPOConfig, everything that costs time set to what is best here, and the loss to Dr. GRPO's.

    A step's responses are generated all at once, or in ``generation_batches`` of fewer rows, each before the
    micro-batches that it is for: whether long rows or many decoding steps cost more depends on the lengths. No
    checkpoints, no logs of completions, no recomputation, no reference model.
    """
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=directory,
        use_cpu=True,
        bf16=False,
        seed=job.seed,
        max_steps=job.warm_up + job.steps,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.micro_batches,
        steps_per_generation=job.micro_batches // job.generation_batches,
        num_generations=job.group,
        max_completion_length=job.max_response,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        num_iterations=1,
        epsilon=job.clip,
        loss_type="dr_grpo",
        scale_rewards="none",
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=job.grad_clip,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


class Count:
    """Rewards responses, and adds up what they were, after ``skip`` of them."""

    def __init__(self, eos: int, skip: int) -> None:
        self._eos, self._skip = eos, skip
        self.lengths: list[int] = []
        self.earned = 0.0

    def reward(self, completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """TRL's interface of a reward function."""
        earned = rewards(completions, [ids[-1] == self._eos for ids in completion_ids])
        if self._skip:
            self._skip -= len(earned)
        else:
            self.lengths += map(len, completion_ids)
            self.earned += sum(earned)
        return earned


def stopwatch() -> Any:
    """A callback with the seconds from each step's end to the next one's: generation belongs to its step."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._since = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            self.seconds.append(now - self._since)
            self._since = now

    return Stopwatch()


if __name__ == "__main__":
    main()

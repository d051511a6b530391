"""A random Qwen3 with a byte-pair tokenizer that was trained on mathematical English, and a chat template."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_cgrpo.config.model_shape import QWEN3, ModelShape, hf_config
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.random_init import RandomWeights

EOS = "<|im_end|>"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROSE = [
    "What is the value of $x$ if the sum of two numbers is 12? Please reason step by step, and put your final answer",
    "Problem: A proposed solution: The right answer is 4. Check each step. Conclusion: correct",
    "Find the area of the triangle with sides $a$, $b$ and $c$, where \\frac{1}{2} + \\sqrt{3} = \\boxed{}.",
    "An earlier solution: Feedback on it: Solve the problem again, using the feedback. incorrect [END]",
]


def write_tokenizer(directory: Path, chat_template: str | None = CHAT) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", EOS, "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(PROSE, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token="<pad>")
    fast.chat_template = chat_template
    fast.save_pretrained(str(directory))
    return directory


def write_model(directory: Path, max_positions: int = 4096, seed: int = 0) -> Path:
    tokenizer = write_tokenizer(directory / "tokenizer")
    shape = ModelShape(QWEN3, 1, 2, 2, 32, 64, 64, vocab=400, max_positions=max_positions, tied_embeddings=True)
    weights = RandomWeights(shape, seed)
    tensors = ((name, weights.read(name)) for name in hf_shapes(shape))
    write_hf_directory(directory / "model", tensors, hf_shapes(shape), torch.float32, hf_config(shape, 1, 0), tokenizer)
    return directory / "model"

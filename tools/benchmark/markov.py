"""A language model of any shape whose lengths and outcomes are set, not learned.

Its layers cost what layers of their shape cost, but add nothing to the residual stream, so that the next token depends
on the last one alone: embedding and output layer together hold the logits of a Markov chain. Every program that samples
from it therefore draws responses of the same lengths and of the same success, without a single altered sampler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from megatron_cgrpo.config.model_shape import QWEN3, ModelShape, hf_config
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.random_init import RandomWeights

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unknown>"
RIGHT, WRONG, CONCLUSION = "\\boxed{1}", "\\boxed{0}", "Conclusion:incorrect[END]"
EASY, HARD, COUNT, JUDGE, AGAIN = "easy", "hard", "count", "judge", "again"
"""What a prompt ends in decides what follows: right and wrong responses, wrong ones, responses of ``steps`` tokens,
critiques, refinements."""

DIGITS = tuple("0123456789")
_SYNONYMS = 8
_NEVER = -20.0
"""Logit of what cannot follow; all of a vocabulary together then has a probability of about 1e-6."""


@dataclass(frozen=True)
class Tail:
    """Lengths of a text: geometric with mean ``short``, or with mean ``long`` for a share ``of_long`` of the texts."""

    short: float
    long: float
    of_long: float

    @property
    def mean(self) -> float:
        return (1 - self.of_long) * self.short + self.of_long * self.long

    def scaled(self, factor: float) -> Tail:
        return Tail(factor * self.short, factor * self.long, self.of_long)


@dataclass(frozen=True)
class Chain:
    """``easy`` and ``again``: shares of right answers to easy prompts and among refinements. Hard prompts have none.

    ``steps``: how many words stand before the answer to a prompt that ends in ``count``.
    """

    response: Tail
    critique: Tail
    easy: float = 0.5
    again: float = 0.3
    steps: int = 0

    def transitions(self) -> dict[tuple[str, ...], dict[str, float]]:
        """What follows each of some words: words and their probabilities. Other words end a text."""
        table: dict[tuple[str, ...], dict[str, float]] = {
            (RIGHT, WRONG, CONCLUSION): {EOS: 1.0},
            (EASY,): self._begins(self.easy),
            (HARD,): self._begins(0.0),
            (AGAIN,): self._begins(self.again),
            (JUDGE,): _split("critique", self.critique, 1.0),
        }
        for ending, kind, tail in (
            (RIGHT, "right", self.response),
            (WRONG, "wrong", self.response),
            (CONCLUSION, "critique", self.critique),
        ):
            for part, mean in (("short", tail.short), ("long", tail.long)):
                words = _words(kind, part)
                table[words] = dict.fromkeys(words, (1 - 1 / mean) / len(words)) | {ending: 1 / mean}
        counted = [COUNT, *self.counted]
        for word, following in zip(counted, counted[1:], strict=False):
            table[(word,)] = {following: 1.0}
        table[(counted[-1],)] = {RIGHT: self.easy, WRONG: 1 - self.easy}
        return table

    @property
    def counted(self) -> list[str]:
        return [f"count{number}" for number in range(self.steps)]

    def _begins(self, right: float) -> dict[str, float]:
        return _split("right", self.response, right) | _split("wrong", self.response, 1 - right)

    def vocabulary(self) -> list[str]:
        words = [PAD, EOS, UNKNOWN, *DIGITS, EASY, HARD, COUNT, JUDGE, AGAIN, RIGHT, WRONG, CONCLUSION]
        words += [
            w for kind in ("right", "wrong", "critique") for part in ("short", "long") for w in _words(kind, part)
        ]
        return words + self.counted


def model_shape(chain: Chain, *, hidden: int, layers: int, vocab: int, max_positions: int) -> ModelShape:
    """A Qwen3. Raises ValueError where the chain does not fit."""
    directions, words = len(chain.transitions()) + 1, len(chain.vocabulary())
    if hidden < directions or hidden % 64:
        raise ValueError(f"hidden={hidden}: the chain needs {directions} directions: take a larger multiple of 64")
    if vocab < words:
        raise ValueError(f"vocab={vocab}: the chain has {words} words: raise it")
    return ModelShape(
        QWEN3,
        layers=layers,
        heads=hidden // 32,
        kv_heads=hidden // 64,
        head_dim=32,
        hidden=hidden,
        ffn=3 * hidden,
        vocab=vocab,
        max_positions=max_positions,
    )


def write_model(directory: Path, chain: Chain, shape: ModelShape) -> None:
    """A Hugging Face directory in float32, whole or not at all."""
    words = chain.vocabulary() + [f"<reserved{i}>" for i in range(shape.vocab - len(chain.vocabulary()))]
    own = _embeddings(chain.transitions(), words, shape.hidden)
    weights = RandomWeights(shape, seed=0)

    def tensor(name: str) -> Tensor:
        if name in own:
            return own[name]
        drawn = weights.read(name)
        return torch.zeros_like(drawn) if name.endswith(("o_proj.weight", "down_proj.weight")) else drawn

    sizes = hf_shapes(shape)
    with TemporaryDirectory() as tokenizer:
        _write_tokenizer(Path(tokenizer), words)
        tensors = ((name, tensor(name)) for name in sizes)
        config = hf_config(shape, eos_token_id=words.index(EOS), pad_token_id=words.index(PAD))
        write_hf_directory(directory, tensors, sizes, torch.float32, config, Path(tokenizer))


def _embeddings(
    transitions: Mapping[tuple[str, ...], Mapping[str, float]], words: Sequence[str], hidden: int
) -> dict[str, Tensor]:
    """Words that are followed by the same share a direction of length sqrt(hidden), which the final norm leaves as
    it is; all others share direction 0."""
    ids = {word: number for number, word in enumerate(words)}
    embedding, output = torch.zeros(len(words), hidden), torch.zeros(len(words), hidden)
    direction = {word: number for number, group in enumerate(transitions, start=1) for word in group}
    for word, number in ids.items():
        embedding[number, direction.get(word, 0)] = math.sqrt(hidden)
    for column, following in enumerate([{EOS: 1.0}, *transitions.values()]):
        output[:, column] = _NEVER / math.sqrt(hidden)
        for word, probability in following.items():
            if probability > 0:
                output[ids[word], column] = math.log(probability) / math.sqrt(hidden)
    return {"model.embed_tokens.weight": embedding, "lm_head.weight": output}


def _split(kind: str, tail: Tail, share: float) -> dict[str, float]:
    short, long = _words(kind, "short"), _words(kind, "long")
    shares = dict.fromkeys(short, share * (1 - tail.of_long) / len(short))
    return shares | dict.fromkeys(long, share * tail.of_long / len(long))


def _words(kind: str, part: str) -> tuple[str, ...]:
    """Synonyms, so that texts differ and sampling has something to choose."""
    return tuple(f"{kind}-{part}-{number}" for number in range(_SYNONYMS))


def _write_tokenizer(directory: Path, words: Sequence[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)
    fast.padding_side = "left"
    fast.save_pretrained(str(directory))

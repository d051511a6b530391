"""What is measured: a model with set lengths, problems for it, and the recipe that trains on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from benchmark.markov import AGAIN, COUNT, EASY, HARD, JUDGE, Chain, model_shape, write_model

_TEMPLATES = {
    "answer": "{{ question }}",
    "critique": f"{{{{ question }}}} {{{{ response }}}} {JUDGE}",
    "refinement": f"{{{{ question }}}} {{{{ response }}}} {{{{ critique }}}} {AGAIN}",
}
_ENDINGS = {"easy": (EASY,), "half": (EASY, HARD), "count": (COUNT,)}
_PROBLEMS = 1024
_MARGIN = 4
"""Tokens that a template adds, at most."""


@dataclass(frozen=True)
class Setting:
    """``prompts`` a step, ``group`` responses each; ``problems`` says how they end: ``easy`` ones, ``half`` of them
    hard, in turn, or all with the same ``count`` of words. Limits in tokens."""

    chain: Chain
    problems: str
    prompts: int
    group: int
    prompt_tokens: int
    max_response: int
    max_critique: int
    hidden: int = 256
    layers: int = 4
    vocab: int = 1024

    @property
    def samples(self) -> int:
        """Initial responses of a step."""
        return self.prompts * self.group

    def longer(self, factor: int) -> Setting:
        """Every length but the prompts' times ``factor``."""
        chain = replace(
            self.chain, response=self.chain.response.scaled(factor), critique=self.chain.critique.scaled(factor)
        )
        return replace(
            self, chain=chain, max_response=factor * self.max_response, max_critique=factor * self.max_critique
        )

    def recipe(self, files: Files) -> dict[str, Any]:
        """Without algorithm and layout, which the measurement decides."""
        return {
            "model": {"path": str(files.model)},
            "task": {
                "kind": "file",
                "domain": "exact",
                "train": str(files.problems),
                "test": str(files.held_out),
                "chat": False,
                "templates": {name: str(files.template(name)) for name in _TEMPLATES},
            },
            "train": {"prompts_per_step": self.prompts},
            "optimizer": {"lr": 1e-6, "weight_decay": 0.0},  # so small that lengths stay what they are
            "rollout": {
                "max_prompt_tokens": self.prompt_tokens + _MARGIN,
                "max_response_tokens": self.max_response,
                "max_critique_tokens": self.max_critique,
                "kv_cache_mib": 512,
            },
            "evaluation": {"every": 0, "prompts": 1, "samples": 1, "final_samples": 1},
            "checkpoint": {"every": 0},
            "observe": {"tensorboard": False, "rollouts": False, "live": False},
            "guard": {"action": "off"},
        }


@dataclass(frozen=True)
class Files:
    """Of a setting, in a directory of their own."""

    directory: Path

    @property
    def model(self) -> Path:
        return self.directory / "model"

    @property
    def problems(self) -> Path:
        return self.directory / "train.jsonl"

    @property
    def held_out(self) -> Path:
        return self.directory / "test.jsonl"

    def template(self, name: str) -> Path:
        return self.directory / f"{name}.jinja"

    @classmethod
    def write(cls, directory: Path, setting: Setting) -> Files:
        files = cls(directory)
        directory.mkdir(parents=True)
        context = setting.prompt_tokens + _MARGIN + 2 * setting.max_response + setting.max_critique
        shape = model_shape(
            setting.chain,
            hidden=setting.hidden,
            layers=setting.layers,
            vocab=setting.vocab,
            max_positions=max(context, 1024),
        )
        write_model(files.model, setting.chain, shape)
        rows = [json.dumps(row) for row in problem_rows(_PROBLEMS, setting.problems, setting.prompt_tokens)]
        files.problems.write_text("\n".join(rows) + "\n", encoding="utf-8")
        files.held_out.write_text(rows[0] + "\n", encoding="utf-8")
        for name, text in _TEMPLATES.items():
            files.template(name).write_text(text, encoding="utf-8")
        return files


def problem_rows(count: int, problems: str, tokens: int) -> Iterator[dict[str, str]]:
    """Questions of ``tokens`` words: the number in digits, up to the word that decides what follows."""
    endings = _ENDINGS[problems]
    for number in range(count):
        words = [*f"{number:0{tokens - 1}d}", endings[number % len(endings)]]
        yield {"id": f"p{number}", "question": " ".join(words), "answer": "1"}


def read_questions(path: Path) -> list[str]:
    """As the programs are to be prompted with them, the line break of a prompt without a chat included."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [f"{json.loads(line)['question']}\n" for line in lines]


def write_recipe(path: Path, *sections: dict[str, Any]) -> None:
    """Later sections override the keys of earlier ones."""
    merged: dict[str, Any] = {}
    for section in sections:
        for name, values in section.items():
            both = isinstance(values, dict) and isinstance(merged.get(name), dict)
            merged[name] = {**merged[name], **values} if both else values
    path.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")

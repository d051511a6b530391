"""What is learned: the embedded misconceptions task, or problems from files."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_cgrpo.config.section import Section

OPERATORS = "+-*"

Domain = Literal["math", "choice", "exact", "code"]
"""What an answer is, and with it how it is verified and asked for."""


class MisconceptionsConfig(Section):
    """Chains of one-digit operations modulo ``modulus``; a share of the facts is believed wrongly by the base model.

    ``strength`` is the probability that the base model is taught to give a misconceived fact its right value.
    """

    kind: Literal["misconceptions"] = "misconceptions"
    modulus: int = Field(10, ge=3, le=10)
    min_operations: int = Field(2, ge=1)
    max_operations: int = Field(5, ge=1)
    misconceived_share: float = Field(0.2, gt=0, le=0.5)
    strength: float = Field(1e-3, ge=0, lt=0.5)
    train_problems: int = Field(4000, ge=1)
    test_problems: int = Field(256, ge=1)
    seed: int = 0

    @property
    def different_problems(self) -> int:
        """Number of chains of ``min_operations`` to ``max_operations`` operations."""
        lengths = range(self.min_operations, self.max_operations + 1)
        return sum(self.modulus ** (n + 1) * len(OPERATORS) ** n for n in lengths)

    @property
    def usable_problems(self) -> int:
        """What the train and test sets may hold together: the base model's own training needs the other half."""
        return self.different_problems // 2

    @model_validator(mode="after")
    def _lengths(self) -> "MisconceptionsConfig":
        if self.min_operations > self.max_operations:
            raise ValueError(
                f"min_operations={self.min_operations} exceeds max_operations={self.max_operations}: lower the first"
            )
        return self


class TemplatesConfig(Section):
    """Jinja2 files in place of the domain's own templates; what each may use is in docs/data.md."""

    answer: Path | None = None
    critique: Path | None = None
    refinement: Path | None = None


class FileTaskConfig(Section):
    """Problem files, JSONL or parquet (``data.problem_file`` has their columns), verified as ``domain`` asks.

    ``chat`` wraps every prompt in the tokenizer's chat template: ``auto`` where it has one. ``system`` is the system
    message; null takes the problem's own, if any, and only in a chat.
    """

    kind: Literal["file"]
    train: Path
    test: Path
    domain: Domain = "math"
    templates: TemplatesConfig = TemplatesConfig()
    chat: Literal["auto"] | bool = Field("auto", description="auto, on or off")
    system: str | None = None
    workers: int = Field(2, ge=1, description="answers or programs verified at once")
    allow_weak_sandbox: bool = Field(False, description="run programs where the kernel cannot confine them fully")


TaskConfig = Annotated[MisconceptionsConfig | FileTaskConfig, Field(discriminator="kind")]


class WarmStartConfig(Section):
    """Supervised training of the sandbox's base model; the result is cached by the hash of what determines it."""

    hidden_size: int = Field(128, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(4, ge=1)
    ffn_size: int = Field(512, ge=8)
    steps: int = Field(1600, ge=1)
    rows_per_step: int = Field(16, ge=1)
    lr: float = Field(1.5e-3, gt=0)
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    micro_batch_tokens: int = Field(4096, ge=1)
    tp: int = Field(1, ge=1)
    dp: int = Field(2, ge=1)
    seed: int = 0
    cache_dir: Path | None = Field(None, description="null: MCGRPO_CACHE, else ~/.cache/megatron_cgrpo")

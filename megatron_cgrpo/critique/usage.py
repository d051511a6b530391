"""What a critic behind a paid interface cost."""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1_000_000


@dataclass
class Usage:
    """Counted as the server reports it; ``unmetered`` answers came without a report and count no tokens."""

    requests: int = 0
    retries: int = 0
    unmetered: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def add(self, other: Usage) -> None:
        self.requests += other.requests
        self.retries += other.retries
        self.unmetered += other.unmetered
        self.prompt_tokens += other.prompt_tokens
        self.generated_tokens += other.generated_tokens

    def metrics(self, price_in: float, price_out: float) -> dict[str, float]:
        """``critique.api.*``; ``cost`` is in the currency of the prices, which are per million tokens."""
        cost = (self.prompt_tokens * price_in + self.generated_tokens * price_out) / MILLION
        return {
            "critique.api.requests": self.requests,
            "critique.api.retries": self.retries,
            "critique.api.unmetered": self.unmetered,
            "critique.api.prompt_tokens": self.prompt_tokens,
            "critique.api.generated_tokens": self.generated_tokens,
            "critique.api.cost": cost,
        }

"""A request for a critique, its parts, and a tokenizer of characters."""

from megatron_cgrpo.critique.protocol import CritiqueRequest
from megatron_cgrpo.types import Prompt, Verdict

PROMPT = Prompt("p", "1+1", [1, 2], "2")
WRONG, RIGHT = Verdict(0.0, "wrong"), Verdict(1.0, "correct")


def request(verdict: Verdict = WRONG, seed: int = 40) -> CritiqueRequest:
    return CritiqueRequest(PROMPT, "1+1=3", [7, 8, 1], verdict, seed)


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]

"""Sampled texts inside a longer prompt."""

from __future__ import annotations


def without_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """``ids`` without a final end-of-sequence: in a prompt, the text goes on."""
    return ids[:-1] if ids and ids[-1] == eos_token_id else ids

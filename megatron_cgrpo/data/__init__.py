"""Prompts in order, rows into micro-batches, tokens in and out."""

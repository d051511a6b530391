"""Critique-GRPO (arXiv 2506.03106) at Megatron scale: Megatron-core actors, Ray-managed vLLM engines."""

__version__ = "0.1.0"

"""How trained weights reach the engines."""

from typing import Literal

from megatron_cgrpo.config.section import Section


class SyncConfig(Section):
    """``backend``: vLLM's built-in ``nccl`` and ``ipc`` (GPU), or ``file``, safetensors in shared memory (one host)."""

    backend: Literal["auto", "file", "nccl", "ipc"] = "auto"

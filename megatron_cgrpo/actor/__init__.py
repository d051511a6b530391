"""The Megatron-core side. Importing this package prepares megatron-core for a machine without CUDA."""

import torch

if not torch.cuda.is_available():
    from megatron_cgrpo.actor import cpu_device

    cpu_device.install()

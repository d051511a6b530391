"""The Megatron-core side. Importing this package prepares megatron-core for a machine without CUDA."""

import warnings

import torch

if not torch.cuda.is_available():
    from megatron_cgrpo.actor import cpu_device

    cpu_device.install()
    # Without CUDA there is no Transformer Engine and no apex, of which Megatron warns at every import.
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex).*", module=r"megatron\.core")

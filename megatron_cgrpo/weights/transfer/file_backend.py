"""The engine's end of ``FileSender``: a vLLM weight-transfer backend named ``file``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

BACKEND = "file"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the files carry names, dtypes and shapes."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One safetensors file, readable until the call returns, and the names in it."""

    path: str
    names: list[str]


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads safetensors files through the model's own ``load_weights``, inside vLLM's layer-wise reload."""

    init_info_cls: ClassVar[type[FileInitInfo]] = FileInitInfo
    update_info_cls: ClassVar[type[FileUpdateInfo]] = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """There is no rendezvous."""

    def start_weight_update(self) -> None:
        if self.device.type == "cpu":
            self._forget_expert_kernels()
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        # The base class synchronises torch.accelerator unconditionally, which a CPU build does not have.
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        try:
            with safe_open(update_info.path, "pt", device=str(self.device)) as file:
                self.model.load_weights((name, file.get_tensor(name)) for name in update_info.names)
        except BaseException:
            self._abandon_reload()
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack_tied_head()

    def _abandon_reload(self) -> None:
        """vLLM closes the update of a worker that raises, but not its reload: layers would stay half-way for good.

        A layer without buffered weights gets its previous ones back.
        """
        for module in self.model.modules():
            layer = get_layerwise_info(module)
            layer.loaded_weights.clear()
            layer.load_numel = 0
        self.finish_weight_update()

    def _forget_expert_kernels(self) -> None:
        """On CPU experts multiply by packed weights, and vLLM packs them only where it also sets up their kernel."""
        for module in self.model.modules():
            if isinstance(module, RoutedExperts):
                module.quant_method.moe_kernel = None

    def _repack_tied_head(self) -> None:
        """On CPU the output layer multiplies by a packed copy; a tied one is not repacked by the embedding's reload."""
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def register() -> None:
    """Makes ``backend: file`` known to vLLM in this process; to be called once."""
    WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)

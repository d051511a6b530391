"""Metrics as TensorBoard scalars."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from megatron_cgrpo.observe.metrics import Metrics


class TensorBoardSink:
    """``a.b.c`` is shown as ``a/b.c``, so that TensorBoard groups by the first part.

    Steps from ``next_step`` on that an interrupted run has written are hidden.
    """

    def __init__(self, directory: Path, next_step: int) -> None:
        self._writer = SummaryWriter(str(directory), purge_step=next_step)

    def write(self, metrics: Metrics) -> None:
        step = int(metrics["step"])
        for key, value in metrics.items():
            if key != "step":
                self._writer.add_scalar(key.replace(".", "/", 1), value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

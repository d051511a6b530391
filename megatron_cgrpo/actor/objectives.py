"""What is done with log-probabilities: the policy-gradient loss, the supervised loss, or just reading them."""

from __future__ import annotations

from torch import Tensor

from megatron_cgrpo.actor.forward import PostProcess
from megatron_cgrpo.algorithm.loss import LossInputs, policy_loss
from megatron_cgrpo.algorithm.metrics import LossMetrics
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.data.microbatch import MicroBatch


def policy_gradient(spec: LossSpec) -> PostProcess:
    """Reports ``LossMetrics``."""

    def objective(logp: Tensor, entropy: Tensor, batch: MicroBatch) -> tuple[Tensor, LossMetrics]:
        inputs = LossInputs(
            weight=batch.weight.flatten(),
            advantage=batch.advantage.flatten(),
            refined=batch.refined.flatten(),
            sequence_index=batch.sequence_index.flatten(),
            behaviour_logp=None if batch.behaviour_logp is None else batch.behaviour_logp.flatten(),
            old_logp=None if batch.old_logp is None else batch.old_logp.flatten(),
            reference_logp=None if batch.reference_logp is None else batch.reference_logp.flatten(),
        )
        output = policy_loss(logp.flatten(), entropy.flatten(), inputs, spec)
        return output.loss, output.metrics

    return objective


def supervised(logp: Tensor, entropy: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Weighted negative log-likelihood; reports its detached value."""
    loss = -(batch.weight * logp).sum()
    return loss, loss.detach().clone()


def read_logprobs(logp: Tensor, entropy: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Reports the log-probabilities [b, s] on the CPU; the loss is a constant."""
    return logp.new_zeros(()), logp.detach().cpu()

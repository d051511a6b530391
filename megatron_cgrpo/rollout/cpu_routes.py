"""The experts of every token from CPU engines too: vLLM's own way back, with the one end that its CPU worker lacks.

vLLM captures what its routers choose, and a connector carries it to the finished request. Only its newer model runner
feeds the connector, and that one needs Triton, which CPUs do not have. Here the runner that CPUs use feeds it. Without
the other's prefix cache, since a CPU engine computes every token itself.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.aux_output_connector.connector import AuxRequestOutput
from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
    RoutedExpertsCapturer,
    bind_routed_experts_capturer,
)
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def install() -> None:
    """Before the engine's configuration is made, and in every worker process; to be called once in each."""
    load, execute, sample = CPUModelRunner.load_model, CPUModelRunner.execute_model, CPUModelRunner.sample_tokens

    def load_model(runner: Any, *args: Any, **kwargs: Any) -> None:
        load(runner, *args, **kwargs)
        runner.route_capturer, runner.captured_routes = None, None
        if runner.vllm_config.aux_output_config.enabled:
            tokens = runner.scheduler_config.max_num_batched_tokens
            runner.route_capturer = RoutedExpertsCapturer(tokens, runner.vllm_config)
            bind_routed_experts_capturer(runner.model, runner.route_capturer)

    def execute_model(runner: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        output = execute(runner, scheduled, *args, **kwargs)
        if runner.route_capturer is not None and scheduled.total_num_scheduled_tokens:
            runner.captured_routes = _by_request(runner, scheduled)
        return output

    def sample_tokens(runner: Any, *args: Any, **kwargs: Any) -> Any:
        output = sample(runner, *args, **kwargs)
        if runner.captured_routes is not None:
            output.aux_output_connector_output, runner.captured_routes = runner.captured_routes, None
        return output

    CPUModelRunner.load_model, CPUModelRunner.execute_model = load_model, execute_model
    CPUModelRunner.sample_tokens = sample_tokens
    # Of what it refuses, only the model runner and the prefix cache are meant; the recipe's checks know the rest.
    VllmConfig._verify_aux_output_compatibility = lambda config: None


@torch.inference_mode()
def _by_request(runner: Any, scheduled: Any) -> dict[str, AuxRequestOutput]:
    """Of every scheduled request, in the order of the batch: the rows from the token on that the connector asks for."""
    rows = runner.route_capturer.snapshot_routing_data(scheduled.total_num_scheduled_tokens).numpy()
    wanted = scheduled.aux_output_connector_metadata.requests
    batch, offset = runner.input_batch, 0
    result = {}
    for request_id in batch.req_ids:
        count = scheduled.num_scheduled_tokens[request_id]
        computed = int(batch.num_computed_tokens_cpu[batch.req_id_to_index[request_id]])
        skipped = wanted[request_id] - computed
        result[request_id] = AuxRequestOutput(wanted[request_id], rows[offset + skipped : offset + count])
        offset += count
    return result

"""Where a checkpoint layout puts the layers, against Megatron's own rules."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import LLAMA, ModelShape
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.layout import CheckpointLayout


@given(
    layers=st.integers(1, 24),
    pp=st.integers(2, 4),
    vpp=st.integers(1, 3),
    first=st.none() | st.integers(1, 6),
    last=st.none() | st.integers(1, 6),
)
def test_layers_are_where_megatron_builds_them(
    layers: int, pp: int, vpp: int, first: int | None, last: int | None
) -> None:
    layout = CheckpointLayout(pp=pp, vpp=vpp, first_stage_layers=first, last_stage_layers=last)
    shape = ModelShape(LLAMA, layers, heads=8, kv_heads=2, head_dim=4, hidden=16, ffn=24, vocab=30, max_positions=8)
    try:
        layout.check(shape)
    except ConfigError:
        assume(False)
    config = TransformerConfig(
        num_layers=layers,
        hidden_size=16,
        num_attention_heads=8,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
    )
    expected = {}
    for stage in range(pp):
        for chunk in range(vpp) if vpp > 1 else [None]:
            start = get_transformer_layer_offset(config, vp_stage=chunk, pp_rank=stage)
            for layer in range(start, start + get_num_layers_to_build(config, vp_stage=chunk, pp_rank=stage)):
                expected[layer] = stage
    found = {w.layer: layout.stage(w, layers) for w in model_weights(shape) if w.layer is not None}
    assert found == expected and len(found) == layers

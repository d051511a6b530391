"""Where a layout puts the layers, against Megatron's own rules, and the layouts that Megatron cannot run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import LLAMA, MIXTRAL, Experts, ModelShape
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.layout import CheckpointLayout

SHAPE = ModelShape(LLAMA, layers=8, heads=8, kv_heads=2, head_dim=4, hidden=16, ffn=24, vocab=30, max_positions=8)


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
    shape = replace(SHAPE, layers=layers)
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


def test_what_stands_before_and_after_the_layers() -> None:
    layout = CheckpointLayout(pp=4)
    stages = {w.megatron: layout.stage(w, 8) for w in model_weights(SHAPE) if w.layer is None}
    assert stages == {
        "embedding.word_embeddings.weight": 0,
        "decoder.final_layernorm.weight": 3,
        "output_layer.weight": 3,
    }


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (CheckpointLayout(tp=0), "tp=0: sizes are 1 or more"),
        (CheckpointLayout(tp=3), "tp=3: neither divides the model's 2 key/value heads"),
        (CheckpointLayout(tp=16), "tp=16: does not divide the model's attention heads 8"),
        (CheckpointLayout(ep=2), "ep=2: LlamaForCausalLM has no experts"),
        (CheckpointLayout(vpp=2), "vpp=2: interleaves pipeline stages: set pp > 1"),
        (CheckpointLayout(first_stage_layers=4), "first_stage_layers=4: there is one stage"),
        (CheckpointLayout(pp=3), "pp=3: the model's 8 layers leave 8 for the other 3 stages"),
        (CheckpointLayout(pp=2, first_stage_layers=3, last_stage_layers=4), "leave 1 for the other 0 stages"),
        (CheckpointLayout(pp=3, first_stage_layers=7), "first_stage_layers=7: the model's 8 layers leave 1"),
        (CheckpointLayout(pp=2, first_stage_layers=0), "a stage has 1 layer or more"),
        (CheckpointLayout(pp=2, vpp=3), "vpp=3: does not divide"),
    ],
)
def test_layouts_that_megatron_cannot_run_are_refused_by_name(layout: CheckpointLayout, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layout.check(SHAPE)
    assert any(message in problem for problem in caught.value.problems), caught.value.problems


def test_fewer_key_value_heads_than_ranks_are_split_by_rows() -> None:
    """2 heads on 4 ranks: Megatron cuts the rows of the common projection and gathers them again when it runs."""
    CheckpointLayout(tp=4).check(SHAPE)


def test_experts_divide_among_expert_parallel_ranks() -> None:
    shape = replace(SHAPE, architecture=MIXTRAL, experts=Experts(count=6, per_token=2, ffn=24))
    CheckpointLayout(ep=3).check(shape)
    with pytest.raises(ConfigError, match="ep=4: does not divide the model's 6 experts"):
        CheckpointLayout(ep=4).check(shape)


@pytest.mark.parametrize(("tp", "divisor", "rows"), [(1, 1, 30), (4, 1, 32), (2, 128, 256), (1, 30, 30)])
def test_the_vocabulary_is_padded_as_megatron_pads_it(tp: int, divisor: int, rows: int) -> None:
    assert CheckpointLayout(tp=tp, vocab_divisor=divisor).padded_vocab(30) == rows

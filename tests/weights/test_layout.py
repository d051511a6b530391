"""The layouts that Megatron cannot run, and how the vocabulary is padded; where layers go is tested with Megatron."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_shape import LLAMA, MIXTRAL, Experts, ModelShape
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.layout import CheckpointLayout

SHAPE = ModelShape(LLAMA, layers=8, heads=8, kv_heads=2, head_dim=4, hidden=16, ffn=24, vocab=30, max_positions=8)


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
        (CheckpointLayout(pp=2, vpp=2, first_stage_layers=2, last_stage_layers=6), "leave out first_stage_layers or"),
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

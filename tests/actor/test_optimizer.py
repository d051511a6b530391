"""The optimiser against torch's own, bit by bit, and the learning-rate schedule against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from megatron_cgrpo.actor.group_step_adamw import GroupStepAdamW
from megatron_cgrpo.actor.optimizer import build_scheduler
from megatron_cgrpo.config.optimizer import OptimizerConfig

PEAK, FLOOR, STEPS = 0.8, 0.1, 10


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((7, 5), (11,), (3,))]


def test_bit_equal_to_torch_fused_adamw_also_with_a_parameter_that_is_sometimes_unused() -> None:
    settings = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6}
    ours, theirs = parameters(), parameters()

    def groups(params: list[torch.nn.Parameter]) -> list[dict]:
        return [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]

    mine = GroupStepAdamW(groups(ours), **settings)
    reference = torch.optim.AdamW(groups(theirs), fused=True, **settings)
    generator = torch.Generator().manual_seed(2)
    for step in range(6):
        for optimizer in (mine, reference):
            optimizer.param_groups[0]["lr"] = 0.03 / (1 + step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    assert [group["step"] for group in mine.param_groups] == [6, 6]
    for a, b in zip(ours, theirs, strict=True):
        assert set(mine.state[a]) == {"exp_avg", "exp_avg_sq"}
        for name, moment in mine.state[a].items():
            assert torch.equal(moment, reference.state[b][name])


def test_only_decoupled_weight_decay_exists() -> None:
    with pytest.raises(ValueError, match="adam_w_mode=False"):
        GroupStepAdamW(parameters(), adam_w_mode=False)


def schedule_of(config: OptimizerConfig, updates: int = STEPS) -> list[float]:
    """The rate of each update, in the order in which the policy asks for it: the schedule moves before the step."""
    group: dict[str, float] = {}
    scheduler = build_scheduler(config, SimpleNamespace(param_groups=[group]), STEPS)
    rates = []
    for _ in range(updates):
        scheduler.step(increment=1)
        rates.append(group["lr"])
        assert group["weight_decay"] == config.weight_decay
    return rates


def decayed(shape: Callable[[float], float], update: int, warmup: int, decay: int = STEPS) -> float:
    if update <= warmup:
        return PEAK * update / warmup
    return FLOOR + (PEAK - FLOOR) * shape(min(1.0, (update - warmup) / (decay - warmup)))


SHAPES = {"linear": lambda x: 1 - x, "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2}


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("style", sorted(SHAPES))
def test_decays_end_at_the_floor(style: str, warmup: int) -> None:
    rates = schedule_of(OptimizerConfig(lr=PEAK, min_lr=FLOOR, schedule=style, warmup_steps=warmup))
    expected = [decayed(SHAPES[style], update, warmup) for update in range(1, STEPS + 1)]
    assert rates == pytest.approx(expected)
    assert rates[0] > 0, "no update is spent on a learning rate of zero"
    assert rates[-1] == pytest.approx(FLOOR)


def test_constant_keeps_its_rate_after_the_warm_up() -> None:
    rates = schedule_of(OptimizerConfig(lr=PEAK, schedule="constant", warmup_steps=4))
    assert rates == pytest.approx([PEAK * update / 4 for update in range(1, 4)] + [PEAK] * 7)
    assert schedule_of(OptimizerConfig(lr=PEAK)) == [PEAK] * STEPS


def test_decay_steps_end_the_decay_before_the_run() -> None:
    config = OptimizerConfig(lr=PEAK, min_lr=FLOOR, schedule="linear", decay_steps=4)
    expected = [decayed(SHAPES["linear"], update, 0, decay=4) for update in range(1, STEPS + 1)]
    assert schedule_of(config) == pytest.approx(expected)


def test_a_warm_up_longer_than_the_run_still_rises_to_the_peak() -> None:
    rates = schedule_of(OptimizerConfig(lr=PEAK, min_lr=FLOOR, schedule="linear", warmup_steps=99))
    assert rates == pytest.approx([PEAK * update / 9 for update in range(1, 10)] + [FLOOR])


def test_a_resumed_schedule_goes_on_and_takes_the_new_length_of_the_run() -> None:
    config = OptimizerConfig(lr=PEAK, min_lr=FLOOR, schedule="linear")
    first, later = {}, {}
    interrupted = build_scheduler(config, SimpleNamespace(param_groups=[first]), STEPS)
    for _ in range(4):
        interrupted.step(increment=1)
    resumed = build_scheduler(config, SimpleNamespace(param_groups=[later]), 2 * STEPS)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.step(increment=1)
    assert later["lr"] == pytest.approx(decayed(SHAPES["linear"], 5, 0, decay=2 * STEPS))

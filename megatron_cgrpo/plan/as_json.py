"""A plan as plain values: what ``mcgrpo plan --json`` writes."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from megatron_cgrpo.plan.estimate import Estimate
from megatron_cgrpo.plan.layouts import settings
from megatron_cgrpo.plan.parameters import rank_parameters, whole_model
from megatron_cgrpo.plan.plan import Plan


def as_json(plan: Plan) -> dict[str, Any]:
    """Memory in GiB, of a rank where nothing else is said; time in s per step; lengths in tokens."""
    made = plan.made
    return {
        "fits": plan.fits,
        "problems": plan.problems,
        "remedies": plan.remedies,
        "gpus": plan.gpus,
        "gpus_used": made.gpus,
        "gpu": made.gpu.kind,
        "parameters": whole_model(made.shape).total,
        "parameters_per_token": made.shape.parameters,
        "parameters_per_rank": max(
            rank_parameters(made.shape, made.recipe.parallel, stage).total for stage in range(made.recipe.parallel.pp)
        ),
        "memory": _memory(made),
        "time": _time(made),
        "critique": _critique(made),
        "sync": {"gib": made.time.sync.gib, "seconds": made.time.sync.seconds},
        "traffic": {axis: each.bytes for axis, each in made.time.trainer.traffic.items()},
        "flops": {"model": made.time.trainer.model_flops, "mfu": made.time.trainer.mfu},
        "tokens": {
            "trained": made.work.tokens,
            "generated": made.work.generate.tokens,
            "generated_per_s_per_gpu": made.time.rollout.tokens_per_s,
        },
        "gpu_hours": made.gpu_hours,
        "layouts": [_layout(each) for each in plan.layouts],
        "assumptions": made.assume.model_dump(),
    }


def _memory(made: Estimate) -> dict[str, Any]:
    trainer = {field.name: getattr(made.trainer, field.name) for field in fields(made.trainer)}
    return {
        **trainer,
        "total": made.trainer.total,
        "training_peak": made.training_peak,
        "sampling_peak": made.sampling_peak,
        "capacity": made.gpu.memory_gib,
        "engine": {**asdict(made.engine), "total": made.engine.total},
        "host": {**asdict(made.host), "total": made.host.total, "capacity": made.gpu.host_gib},
        "disk": {**asdict(made.disk), "total": made.disk.total},
    }


def _time(made: Estimate) -> dict[str, float]:
    time = made.time
    return {
        "generate": time.rollout.generate,
        "critique": time.rollout.critique,
        "refine": time.rollout.refine,
        "rollout": time.rollout.total,
        "logprob": time.trainer.logprob,
        "update": time.trainer.update,
        "bubble": time.trainer.bubble,
        "communication": time.trainer.communication,
        "optimizer": time.trainer.optimizer,
        "sync": time.sync.seconds,
        "checkpoint": time.checkpoint,
        "evaluate": time.evaluate,
        "step": time.step,
        "step_without_critique": made.without.step,
    }


def _critique(made: Estimate) -> dict[str, float]:
    """What it adds to a step."""
    return {
        "seconds": made.critique_seconds,
        "share": made.critique_seconds / made.time.step,
        "critique_tokens": made.work.critique.tokens,
        "refinement_tokens": made.work.refine.tokens,
    }


def _layout(made: Estimate) -> dict[str, Any]:
    return {
        "settings": settings(made.recipe),
        "gpus": made.gpus,
        "step": made.time.step,
        "mfu": made.time.trainer.mfu,
        "training_peak": made.training_peak,
        "sampling_peak": made.sampling_peak,
    }

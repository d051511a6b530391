"""The tables of ``mcgrpo plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from rich.table import Table

from megatron_cgrpo.plan.estimate import Estimate
from megatron_cgrpo.plan.parameters import rank_parameters, whole_model
from megatron_cgrpo.plan.plan import Plan
from megatron_cgrpo.plan.shortfalls import layout


def headline(plan: Plan) -> str:
    made = plan.made
    count, recipe = whole_model(made.shape).total, made.recipe
    rank = max(rank_parameters(made.shape, recipe.parallel, stage).total for stage in range(recipe.parallel.pp))
    return (
        f"{count:,} parameters, {rank:,} on a rank of {layout(recipe)}; {recipe.rollout.engines} engines of "
        f"{recipe.rollout.tensor_parallel}, {recipe.rollout.placement}; {made.time.step:,.0f} s a step, "
        f"{made.gpu_hours:,.0f} GPU-hours for {recipe.train.steps} steps"
    )


def memory_table(made: Estimate) -> Table:
    """Of the trainer rank and of the engine's worker that need most, and of a node."""
    table = Table("memory, GiB", "trainer rank", "engine worker", "a node", title=f"{made.gpu.kind}")
    for column in table.columns[1:]:
        column.justify = "right"
    for field in fields(made.trainer):
        table.add_row(field.name, f"{getattr(made.trainer, field.name):,.1f}")
    engine, host, disk = made.engine, made.host, made.disk
    for name in ("weights", "activations", "reserve", "kv_cache"):
        table.add_row(f"engine: {name}", "", f"{getattr(engine, name):,.1f}")
    for field in fields(host):
        table.add_row(f"host: {field.name}", "", "", f"{getattr(host, field.name):,.1f}")
    table.add_section()
    table.add_row("peak", f"{made.training_peak:,.1f}", f"{made.sampling_peak:,.1f}", f"{host.total:,.1f}")
    table.add_row("there is", *[f"{made.gpu.memory_gib:,.1f}"] * 2, f"{made.gpu.host_gib:,.1f}")
    table.caption = (
        f"An engine caches {engine.kv_tokens:,.0f} tokens: {_sequences(made)}. Disk: {disk.checkpoint:,.0f} GiB a "
        f"checkpoint, {disk.total:,.0f} at most."
    )
    return table


def _sequences(made: Estimate) -> str:
    """How many sequences an engine's cache holds."""
    each = [f"{count:,.0f} that {name}" for name, count in made.engine.sequences.items()]
    return ", ".join(each) + f", {made.engine.longest:,.1f} of the longest context"


def time_table(made: Estimate) -> Table:
    """With critique and without it."""
    table = Table("time, s a step", "with critique", "without", title="expected step")
    for column in table.columns[1:]:
        column.justify = "right"
    phases = {
        "generate": lambda time: time.rollout.generate,
        "critique": lambda time: time.rollout.critique,
        "refine": lambda time: time.rollout.refine,
        "collection, as scheduled": lambda time: time.rollout.total,
        "log-probabilities": lambda time: time.trainer.logprob,
        "update": lambda time: time.trainer.update,
        "  of it communication": lambda time: time.trainer.communication,
        "  of it pipeline bubble": lambda time: time.trainer.bubble,
        "  of it optimiser": lambda time: time.trainer.optimizer,
        "weight push": lambda time: time.sync.seconds,
        "checkpoint": lambda time: time.checkpoint,
        "evaluation": lambda time: time.evaluate,
    }
    for name, seconds in phases.items():
        table.add_row(name, f"{seconds(made.time):,.1f}", f"{seconds(made.without):,.1f}")
    table.add_section()
    table.add_row("step", f"{made.time.step:,.1f}", f"{made.without.step:,.1f}")
    trainer = made.time.trainer
    sent = ", ".join(f"{axis} {each.bytes / 1e9:,.1f}" for axis, each in trainer.traffic.items())
    table.caption = (
        f"Critique costs {made.critique_seconds:,.1f} s a step ({made.critique_seconds / made.time.step:.0%}). Trainer "
        f"MFU {trainer.mfu:.0%}; engines {made.time.rollout.tokens_per_s:,.0f} tokens/s a GPU; a push "
        f"{made.time.sync.gib:,.1f} GiB. A rank sends, GB a step: {sent or 'nothing'}."
    )
    return table


def layout_table(layouts: Sequence[Estimate]) -> Table:
    table = Table(
        "layout",
        "GPUs",
        "recompute",
        "engines",
        "utilization",
        "trainer GiB",
        "engine GiB",
        "MFU",
        "s a step",
        title="layouts that fit, best first",
    )
    for column in (table.columns[1], *table.columns[4:]):
        column.justify = "right"
    for made in layouts:
        rollout, recompute = made.recipe.rollout, made.recipe.model.recompute
        table.add_row(
            layout(made.recipe),
            str(made.gpus),
            recompute.granularity,
            f"{rollout.engines} x {rollout.tensor_parallel}",
            f"{rollout.gpu_memory_utilization:g}",
            f"{made.training_peak:,.0f}",
            f"{made.sampling_peak:,.0f}",
            f"{made.time.trainer.mfu:.0%}",
            f"{made.time.step:,.1f}",
        )
    return table

"""What ``mcgrpo rescue`` refuses, and what it makes of recipes that train something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_cgrpo.cli import app
from megatron_cgrpo.commands.recipe import load_checked
from megatron_cgrpo.commands.rescue import rescue_settings

SANDBOX = Path(__file__).parents[2] / "examples/sandbox.yaml"
PRESETS = sorted(path.stem for path in (SANDBOX.parents[1] / "megatron_cgrpo/config/presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "grpo_equal_compute"])
@pytest.mark.parametrize("kind", ["indicative", "cot"])
def test_a_recipe_of_any_preset_can_be_rescued(preset: str, kind: str) -> None:
    """``grpo_equal_compute`` needs a finished run beside it."""
    recipe = load_checked(SANDBOX, [f"algorithm.preset={preset}", *rescue_settings(4, [kind])])
    assert recipe.algorithm_at(0).group_size == 4
    assert (recipe.critic.kind, recipe.critic.trigger, recipe.critic.on_failure) == (kind, "all_failed", "drop")


def test_who_criticises_and_refines_is_left_to_the_recipe() -> None:
    recipe = load_checked(SANDBOX, ["critic.source=self", *rescue_settings(4, ["indicative", "cot"])])
    assert (recipe.critic.kind, recipe.critic.source) == ("cot", "self")


@pytest.mark.parametrize("kinds", ["cot,none", "cot,", "hints"])
def test_unknown_kinds_are_refused(kinds: str) -> None:
    result = CliRunner().invoke(app, ["rescue", str(SANDBOX), "--kinds", kinds])
    assert result.exit_code == 2
    assert f"--kinds {kinds}" in result.stderr and "indicative, indicative_gt, cot" in result.stderr

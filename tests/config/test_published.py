"""Published shapes against the numbers of parameters that their cards on the hub state."""

import json
import math
from pathlib import Path

import pytest

from megatron_cgrpo.config import ConfigError, absent_inputs, check_inputs, check_present_inputs, load_recipe
from megatron_cgrpo.config.model_shape import model_shape, read_model_shape
from megatron_cgrpo.config.published import FACTS, download_command, published_shape
from megatron_cgrpo.weights.hf_shapes import hf_shapes

SANDBOX = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
HUB_CONFIGS = json.loads((Path(__file__).parent / "hub_configs.json").read_text())
PARAMETERS = {
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.2-3B-Instruct": 3_212_749_824,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.3-70B-Instruct": 70_553_706_496,
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FACTS.glob("*.json")))
def test_a_published_shape_has_the_parameters_of_its_card(name: str) -> None:
    shape = published_shape(Path("models") / name)
    assert shape is not None
    tensors = hf_shapes(shape)
    assert sum(math.prod(size) for size in tensors.values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(HUB_CONFIGS.keys() & PARAMETERS.keys()))
def test_a_published_shape_is_that_of_the_whole_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIGS[name]))
    assert published_shape(Path(name)) == read_model_shape(tmp_path)


def test_a_directory_that_exists_speaks_for_itself(tmp_path: Path) -> None:
    directory = tmp_path / "Qwen3-8B"
    recipe = load_recipe(SANDBOX, [f"model.path={directory}"])
    assert model_shape(recipe) == published_shape(directory)
    directory.mkdir()
    assert published_shape(directory) is None and download_command(directory) is None
    (directory / "config.json").write_text(json.dumps(HUB_CONFIGS["Qwen3-8B"] | {"num_hidden_layers": 7}))
    assert model_shape(recipe).layers == 7


def test_training_asks_for_what_is_absent_and_a_plan_notes_it(tmp_path: Path) -> None:
    model, judge = tmp_path / "Qwen3-8B", tmp_path / "Qwen3-32B"
    task = ["task.kind=file", f"task.train={tmp_path / 'a.jsonl'}", f"task.test={SANDBOX}"]
    recipe = load_recipe(SANDBOX, [f"model.path={model}", "critic.source=model", f"critic.model.path={judge}", *task])
    absent = absent_inputs(recipe)
    assert [sentence.partition("=")[0] for sentence in absent] == ["model.path", "critic.model.path", "task.train"]
    assert f"hf download Qwen/Qwen3-8B --local-dir {model}" in absent[0]
    with pytest.raises(ConfigError) as caught:
        check_inputs(recipe)
    assert caught.value.problems == absent
    check_present_inputs(recipe)


def test_a_model_that_nobody_published_is_refused_everywhere(tmp_path: Path) -> None:
    recipe = load_recipe(SANDBOX, [f"model.path={tmp_path / 'Qwen9'}"])
    assert absent_inputs(recipe) == ()
    for check in (check_inputs, check_present_inputs):
        with pytest.raises(ConfigError, match="has no config.json"):
            check(recipe)

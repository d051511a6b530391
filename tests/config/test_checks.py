"""Impossible recipes, layouts and paths are refused together, each with field, value and remedy."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cgrpo.config import (
    ConfigError,
    ModelShape,
    Recipe,
    check_inputs,
    check_recipe,
    check_run_dir,
    dump_recipe,
    load_recipe,
    model_shape,
)
from megatron_cgrpo.config.layers import preset_names
from megatron_cgrpo.config.model_shape import QWEN3, Experts

SANDBOX = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "rope_theta": 1000000,
    "hidden_act": "silu",
}


def sandbox(*overrides: str) -> Recipe:
    return load_recipe(SANDBOX, overrides)


URL = "http://localhost:8000/v1"
CONTEXT = sandbox().rollout.context_tokens


def shape() -> ModelShape:
    return model_shape(sandbox())


def problems(recipe: Recipe, model: ModelShape | None) -> tuple[str, ...]:
    try:
        check_recipe(recipe, model)
    except ConfigError as error:
        return error.problems
    return ()


def write_model(directory: Path, **changes: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(QWEN3_8B | changes))
    return directory


@pytest.mark.parametrize("preset", sorted({*preset_names()} - {"released_code"}))
def test_the_sandbox_recipe_passes_with_every_method(preset: str) -> None:
    finished = ["train.compute_of=runs/other"] if preset == "grpo_equal_compute" else []
    recipe = sandbox(f"algorithm.preset={preset}", *finished)
    assert problems(recipe, model_shape(recipe)) == ()


@pytest.mark.parametrize(
    ("overrides", "field", "remedy"),
    [
        (["parallel.tp=1", "parallel.sequence_parallel=true"], "parallel.sequence_parallel=true", "parallel.tp > 1"),
        (["parallel.vpp=2"], "parallel.vpp=2", "parallel.pp > 1"),
        (["train.updates_per_step=3"], "train.prompts_per_step=40", "multiple"),
        (["parallel.dp=8", "train.prompts_per_step=1"], "parallel.dp=8", "train.prompts_per_step"),
        (["critic.kind=none"], "algorithm.refinements=1", "algorithm.refinements=0"),
        (["algorithm.refinements=0"], "critic.kind=cot", "critic.kind=none"),
        (["reward.source=critique", "critic.kind=indicative"], "reward.source=critique", "critic.kind=cot"),
        (["critic.source=model"], "critic.model.path=null", "critic.source=model needs"),
        (["critic.refiner=model"], "critic.model.path=null", "critic.refiner=model needs"),
        (["critic.source=api", f"critic.api.base_url={URL}"], "critic.api.model=null", "set the one that"),
        (["critic.source=api", "critic.api.model=m"], "critic.api.base_url=None", "http://localhost:8000/v1"),
        (["critic.source=api", "critic.api.model=m", "critic.api.base_url=ftp"], "critic.api.base_url=ftp", "set"),
        (["algorithm.refinements=8"], "algorithm.refinements=8", "lower"),
        (["rollout.top_p=0.95"], "rollout.top_p=0.95", "rollout.top_p=1"),
        (["rollout.top_k=50"], "rollout.top_k=50", "rollout.top_k=-1"),
        (["task.train_problems=39"], "task.train_problems=39", "raise"),
        (
            ["task.modulus=3", "task.max_operations=2", "task.train_problems=100", "task.test_problems=22"],
            "task.train_problems=100 + task.test_problems=22",
            "raise task.max_operations",
        ),
        (["evaluation.prompts=1000"], "evaluation.prompts=1000", "lower"),
        (["optimizer.min_lr=0.1"], "optimizer.min_lr=0.1", "lower"),
        (["task.kind=file", "task.train=a", "task.test=b", "critic.source=self"], "model.path=null", "Hugging Face"),
        (["warm_start.tp=4", "warm_start.kv_heads=2"], "warm_start.kv_heads=2", "warm_start.tp=4"),
        (["warm_start.dp=65"], "warm_start.rows_per_step=16", "raise"),
        (["warm_start.hidden_size=130"], "warm_start.hidden_size=130", "warm_start.heads=4"),
    ],
)
def test_a_contradiction_is_refused_by_field_value_and_remedy(overrides: list[str], field: str, remedy: str) -> None:
    (problem,) = problems(sandbox(*overrides), None)
    assert problem.startswith(f"{field}:")
    assert remedy in problem


@pytest.mark.parametrize(
    ("overrides", "changes", "field"),
    [
        (["parallel.tp=2"], {"kv_heads": 3}, "parallel.tp=2: neither divides the model's 3 key/value heads"),
        (["parallel.tp=8"], {"heads": 8, "kv_heads": 1, "head_dim": 2}, "parallel.tp=8: does not divide the rows"),
        (["parallel.tp=2"], {"heads": 5}, "parallel.tp=2: does not divide the model's attention heads 5"),
        (["parallel.tp=2"], {"ffn": 385}, "parallel.tp=2: does not divide the model's feed-forward size 385"),
        (["parallel.tp=2"], {"hidden": 129}, "parallel.tp=2: does not divide the model's hidden size 129"),
        (["parallel.pp=3"], {}, "parallel.pp=3"),
        (["parallel.pp=4", "parallel.vpp=2"], {}, "parallel.pp=4, parallel.vpp=2"),
        (["rollout.tensor_parallel=3"], {}, "rollout.tensor_parallel=3"),
        (["rollout.tensor_parallel=4"], {"heads": 12, "kv_heads": 6}, "rollout.tensor_parallel=4: neither divides"),
        ([], {"max_positions": CONTEXT - 1}, f"rollout: a refinement may need {CONTEXT} tokens"),
    ],
)
def test_an_impossible_layout_is_refused(overrides: list[str], changes: dict[str, int], field: str) -> None:
    (problem,) = problems(sandbox(*overrides), replace(shape(), **changes))
    assert problem.startswith(field)


def test_the_largest_layout_that_fits_passes() -> None:
    model = replace(shape(), layers=4, max_positions=CONTEXT)
    overrides = ["parallel.tp=2", "parallel.pp=2", "parallel.vpp=2", "parallel.sequence_parallel=true"]
    assert problems(sandbox(*overrides), model) == ()


def test_experts_are_split_by_their_own_width_and_with_the_sequences() -> None:
    experts = Experts(count=4, per_token=2, ffn=48)
    model = replace(shape(), ffn=385, experts=experts)
    tensor_parallel = ["parallel.tp=2", "parallel.sequence_parallel=true"]
    assert problems(sandbox(*tensor_parallel), model) == ()
    (problem,) = problems(sandbox("parallel.tp=2"), model)
    assert problem.startswith("parallel.tp=2: a model with experts") and "sequence_parallel=true" in problem
    (problem,) = problems(sandbox(*tensor_parallel), replace(model, experts=replace(experts, ffn=47)))
    assert problem.startswith("parallel.tp=2: does not divide the experts' feed-forward size 47")


def test_more_ranks_than_key_value_heads_share_them() -> None:
    assert problems(sandbox("parallel.tp=4"), replace(shape(), heads=4, kv_heads=2)) == ()


def test_every_problem_is_listed() -> None:
    assert len(problems(sandbox("rollout.top_p=0.9", "parallel.pp=3", "train.updates_per_step=7"), shape())) == 3


def test_a_model_shape_is_read_from_its_config(tmp_path: Path) -> None:
    model = model_shape(sandbox(f"model.path={write_model(tmp_path)}"))
    assert (model.architecture, model.layers, model.heads, model.kv_heads) == ("Qwen3ForCausalLM", 36, 32, 8)
    assert (model.hidden, model.ffn, model.max_positions) == (4096, 12288, 40960)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM .* LlamaForCausalLM or"),
        ({"architectures": None}, "none .* is not supported"),
        ({"num_hidden_layers": "36"}, "num_hidden_layers='36'"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"head_dim": "128"}, "head_dim='128'"),
        ({"rope_theta": "much"}, "rope_theta='much'"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\] .* is no mapping"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn' .* is no mapping"),
    ],
)
def test_an_unsupported_model_is_refused_by_name(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        model_shape(sandbox(f"model.path={write_model(tmp_path, **changes)}"))


def test_a_missing_or_damaged_model_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.path: .*config.json"):
        model_shape(sandbox(f"model.path={tmp_path}"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        model_shape(sandbox(f"model.path={tmp_path}"))


def test_an_existing_run_is_continued_or_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = sandbox(f"run.dir={run}")
    check_run_dir(recipe, resume=False)
    assert not run.exists()
    with pytest.raises(ConfigError, match="no run to resume"):
        check_run_dir(recipe, resume=True)
    run.mkdir()
    check_run_dir(recipe, resume=False)
    (run / "metrics.jsonl").touch()
    check_run_dir(recipe, resume=True)
    with pytest.raises(ConfigError, match=r"run\.dir=.*--resume, or name another run\.dir"):
        check_run_dir(recipe, resume=False)
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        check_run_dir(sandbox(f"run.dir={tmp_path / 'file'}"), resume=False)
    with pytest.raises(ConfigError, match="is a file"):
        check_run_dir(sandbox(f"run.dir={tmp_path / 'file' / 'run'}"), resume=False)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a directory that even root cannot write")
def test_an_unwritable_run_directory_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        check_run_dir(sandbox("run.dir=/proc/run"), resume=False)


def test_a_model_directory_needs_config_tokenizer_and_weights(tmp_path: Path) -> None:
    def found() -> str:
        try:
            check_inputs(sandbox(f"model.path={tmp_path / 'model'}"))
        except ConfigError as error:
            return str(error)
        return ""

    model = tmp_path / "model"
    assert "has no config.json" in found()
    write_model(model)
    assert "has no tokenizer" in found()
    assert "has neither *.safetensors nor a Megatron checkpoint" in found()
    (model / "tokenizer.json").touch()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model-1.safetensors").touch()
    assert "lacks 1 weight files, model-2.safetensors first" in found()
    (model / "model-2.safetensors").touch()
    assert found() == ""
    for damaged in ("{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'):
        (model / "model.safetensors.index.json").write_text(damaged)
        assert "model.safetensors.index.json is damaged" in found()


def test_a_tied_embedding_that_megatron_would_save_wrongly_is_refused() -> None:
    """Elements of a rank's embedding: 16 * 520 = 65 * 128, and 16 * 521, which is no multiple of 128."""
    model = ModelShape(QWEN3, 4, 4, 4, 8, 16, 32, vocab=520, max_positions=4096, tied_embeddings=True)
    staged = sandbox("parallel.tp=1", "parallel.pp=2", "rollout.tensor_parallel=1")
    assert problems(staged, model) == ()
    odd = replace(model, vocab=521)
    (problem,) = problems(staged, odd)
    assert (
        problem.startswith("parallel.pp=2:") and "8336 elements" in problem and "optimizer.distributed=false" in problem
    )
    assert problems(sandbox("parallel.tp=1", "parallel.pp=2", "optimizer.distributed=false"), odd) == ()
    assert problems(sandbox("parallel.tp=2", "parallel.pp=1"), odd) == ()
    assert problems(staged, replace(odd, tied_embeddings=False)) == ()


def test_a_megatron_checkpoint_is_a_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    (model / ".metadata").touch()
    with pytest.raises(ConfigError, match="neither"):
        check_inputs(sandbox(f"model.path={model}"))
    (model / "metadata.json").touch()
    check_inputs(sandbox(f"model.path={model}"))


def test_a_critics_model_needs_the_files_of_a_model(tmp_path: Path) -> None:
    def found() -> str:
        try:
            check_inputs(sandbox("critic.source=model", f"critic.model.path={tmp_path / 'judge'}"))
        except ConfigError as error:
            return str(error)
        return ""

    assert "critic.model.path=" in found() and "has no config.json" in found()
    model = write_model(tmp_path / "judge")
    (model / "tokenizer.json").touch()
    assert "has neither *.safetensors" in found()
    (model / "model.safetensors").touch()
    assert found() == ""
    for name in (".metadata", "metadata.json"):
        (model / name).touch()
    assert "is a Megatron checkpoint, which engines do not read" in found()
    check_inputs(sandbox(f"critic.model.path={tmp_path / 'nobody'}"))


def test_critics_that_come_later_count() -> None:
    assert problems(sandbox("critic.kind=none", "critic.schedule=[{from_step: 5, kind: cot}]"), None) == ()
    overrides = ["algorithm.preset=r1_grpo", "critic.schedule=[{from_step: 5, kind: cot}]"]
    (problem,) = problems(sandbox(*overrides), None)
    assert problem.startswith("critic.kind=cot: its critiques would train nothing")


def file_task(domain: str) -> list[str]:
    return ["task.kind=file", "task.train=a", "task.test=b", f"task.domain={domain}", "model.path=m"]


@pytest.mark.parametrize("preset", ["critique_grpo", "paper", "released-code", "critique_ft", "ref_sft"])
@pytest.mark.parametrize("domain", ["math", "choice", "exact"])
def test_a_program_criticises_where_there_is_one(domain: str, preset: str) -> None:
    recipe = sandbox(*file_task(domain), f"algorithm.preset={preset}", "critic.noise=0.1")
    (problem,) = problems(recipe, None)
    assert problem.startswith(f"critic.source=program: task.domain={domain}") and "to self, model or api" in problem
    check_recipe(recipe, None, answers_only=True)
    for other in (["critic.source=self"], ["critic.kind=indicative_gt"]):
        presets = [f"algorithm.preset={preset}", *other]
        found = problems(sandbox(*file_task(domain), *presets), None)
        assert not any(problem.startswith("critic.") for problem in found)
    assert problems(sandbox(*file_task("code"), f"algorithm.preset={preset}"), None) == ()


def test_a_program_that_comes_later_counts_and_noise_needs_misleading_critiques() -> None:
    later = "critic.schedule=[{from_step: 5, kind: cot, source: program}]"
    (problem,) = problems(sandbox(*file_task("math"), "critic.kind=indicative_gt", later), None)
    assert problem.startswith("critic.source=program: task.domain=math") and "critic.schedule" in problem
    (problem,) = problems(sandbox(*file_task("code"), "critic.noise=0.1"), None)
    assert problem.startswith("critic.noise=0.1: task.kind=file") and "critic.noise=0" in problem


def test_a_key_in_a_servers_address_is_refused_without_repeating_it() -> None:
    for address in ("https://me:secret@host/v1", "https://host/v1?key=secret"):
        recipe = sandbox("critic.source=api", "critic.api.model=m", f"critic.api.base_url={address}")
        (problem,) = problems(recipe, None)
        assert problem.startswith("critic.api.base_url:") and "api_key_env" in problem and "secret" not in problem


def test_a_missing_key_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    recipe = sandbox("critic.source=api", "critic.api.api_key_env=JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"critic\.api\.api_key_env=JUDGE_KEY: .*export it"):
        check_inputs(recipe)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    check_inputs(recipe)
    assert "secret" not in dump_recipe(recipe)
    check_inputs(sandbox("critic.api.api_key_env=NOT_USED"))


def test_missing_data_files_are_named(tmp_path: Path) -> None:
    overrides = ["task.kind=file", f"task.train={tmp_path / 'no.jsonl'}", f"task.test={tmp_path / 'none.jsonl'}"]
    with pytest.raises(ConfigError) as caught:
        check_inputs(sandbox(*overrides))
    assert [problem.partition("=")[0] for problem in caught.value.problems] == ["task.train", "task.test"]

"""The model with set lengths: what it samples in `transformers`, and that all sides are asked the same prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmark.markov import AGAIN, COUNT, EASY, EOS, HARD, JUDGE, RIGHT, WRONG, Chain, Tail
from benchmark.rollouts import growth, packing, staleness, streaming
from benchmark.rollouts.bench import brief
from benchmark.setting import Files, Setting, read_questions, write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from megatron_cgrpo.config import check_inputs, check_recipe
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.critique.conclusion import parse_conclusion
from megatron_cgrpo.data.tokenizer import load_tokenizer
from megatron_cgrpo.tasks.problems.task import FileTask

CHAIN = Chain(Tail(3, 12, 0.2), Tail(2, 6, 0.5), easy=0.4, again=0.25, steps=3)
SETTING = Setting(
    CHAIN, "half", 4, 4, prompt_tokens=6, max_response=64, max_critique=32, hidden=64, layers=2, vocab=128
)
BRIEF = {module.__name__.rpartition(".")[2]: module for module in (streaming, staleness, packing)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.write(tmp_path_factory.mktemp("setting") / "files", SETTING)


@pytest.fixture(scope="module")
def tokenizer(files: Files) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(files.model)


@pytest.fixture(scope="module")
def model(files: Files) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(files.model)


def test_the_next_word_depends_on_the_last_one_as_the_chain_says(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    for before, expected in CHAIN.transitions().items():
        for word in before:
            ids = tokenizer(f"1 {HARD} 7 {word}", return_tensors="pt").input_ids
            with torch.no_grad():
                given = model(input_ids=ids).logits[0, -1].softmax(-1)
            wanted = torch.zeros(SETTING.vocab)
            for follower, probability in expected.items():
                wanted[tokenizer.convert_tokens_to_ids(follower)] += probability
            assert wanted.sum() == pytest.approx(1), word
            torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)


def sampled(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, ending: str, count: int) -> list[str]:
    torch.manual_seed(0)
    prompts = tokenizer([f"1 2 {ending}"] * count, return_tensors="pt")
    tokens = model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=200)
    return tokenizer.batch_decode(tokens[:, 3:], skip_special_tokens=True)


def test_lengths_and_outcomes_are_those_that_were_set(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    easy, hard, again = (sampled(model, tokenizer, ending, 800) for ending in (EASY, HARD, AGAIN))
    assert sum(text.endswith(RIGHT) for text in easy) / 800 == pytest.approx(0.4, abs=0.06)
    assert all(text.endswith(WRONG) for text in hard)
    assert sum(text.endswith(RIGHT) for text in again) / 800 == pytest.approx(0.25, abs=0.06)
    lengths = [len(text.split()) - 1 for text in easy + hard]  # without the answer
    assert CHAIN.response.mean == pytest.approx(0.8 * 3 + 0.2 * 12)
    assert sum(lengths) / len(lengths) == pytest.approx(CHAIN.response.mean, rel=0.1)
    assert {len(text.split()) for text in sampled(model, tokenizer, COUNT, 50)} == {4}
    critiques = sampled(model, tokenizer, JUDGE, 50)
    assert all(parse_conclusion(text).correct is False for text in critiques)


def test_peers_are_asked_the_tokens_that_ours_are(files: Files, tokenizer: PreTrainedTokenizerBase) -> None:
    write_recipe(files.directory / "recipe.yaml", SETTING.recipe(files))
    recipe = load_recipe(files.directory / "recipe.yaml", [])
    task = FileTask(recipe.task, load_tokenizer(files.model))
    try:
        prompts = task.prompts("train")
        questions = read_questions(files.problems)
        assert [prompt.token_ids for prompt in prompts] == tokenizer(questions)["input_ids"]
        assert {len(prompt.token_ids) for prompt in prompts} == {SETTING.prompt_tokens}
        assert [prompt.question.split()[-1] for prompt in prompts[:4]] == [EASY, HARD, EASY, HARD]
        response = tokenizer(f"right-short-0 {RIGHT}")["input_ids"] + [tokenizer.convert_tokens_to_ids(EOS)]
        shown = tokenizer.decode(task.refinement_prompt(prompts[1], response, response))
        assert shown.split()[-5:] == ["right-short-0", RIGHT, "right-short-0", RIGHT, AGAIN]
    finally:
        task.close()


@pytest.mark.parametrize("size", ["brief", "full"])
@pytest.mark.parametrize("name", [*BRIEF, "growth"])
def test_every_section_trains_on_a_recipe_that_is_valid(tmp_path: Path, name: str, size: str) -> None:
    full = growth.BASE if name == "growth" else getattr(BRIEF[name], "SETTING", streaming.SETTING)
    setting = brief(full) if size == "brief" else full
    sections = growth.SECTIONS if name == "growth" else BRIEF[name].SECTIONS
    files = Files.write(tmp_path / "files", setting)
    write_recipe(
        tmp_path / "recipe.yaml", setting.recipe(files), sections, {"algorithm": {"group_size": setting.group}}
    )
    recipe = load_recipe(tmp_path / "recipe.yaml", [])
    check_inputs(recipe)
    check_recipe(recipe, read_model_shape(files.model))
    assert recipe.algorithm.group_size == setting.group
    assert json.loads((files.model / "config.json").read_text())["dtype"] == "float32"


def test_a_chain_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hidden=64: the chain needs 9"):
        Files.write(
            tmp_path / "files",
            Setting(Chain(CHAIN.response, CHAIN.critique, steps=80), "count", 1, 2, 4, 8, 8, hidden=64),
        )

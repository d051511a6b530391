"""What ``mcgrpo preview`` shows, with a tokenizer and no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bpe_model import write_tokenizer
from typer.testing import CliRunner

from megatron_cgrpo.cli import app
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[2]


def preview(*arguments: object) -> list[str]:
    """The problem's line, then one text a prompt."""
    result = CliRunner().invoke(app, ["preview", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output.split("\n\n--- ") if "\n\n--- " in result.output else result.output.split("\n--- ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, problems and a recipe for them."""
    folder = tmp_path_factory.mktemp("preview")
    write_tokenizer(folder / "tokenizer")
    rows = [{"id": name, "question": f"What is {name}?", "answer": name} for name in ("one", "two")]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"task: {{kind: file, train: {folder / 'problems.jsonl'}, test: {folder / 'problems.jsonl'}}}\n"
    (folder / "recipe.yaml").write_text(f"model: {{path: {folder / 'tokenizer'}}}\n{task}")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder / "tokenizer")


def test_prompts_of_a_problem_with_their_lengths(folder: Path, tokenizer: Tokenizer) -> None:
    said = ["--id", "two", "--response", "It is 3.", "--critique", "No."]
    problem, answer, critique, refinement = preview(folder / "recipe.yaml", "critic.sees=answer", *said)
    assert problem.strip() == "problem two, answer: two"
    asked = "What is two?\nPlease reason step by step, and put your final answer within \\boxed{}."
    text = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    assert text in answer and f", {len(tokenizer.encode(text))} tokens ---" in answer
    assert "A proposed solution:\n«It is 3.»\n\nThe right answer is two.\n" in critique
    assert "critic.sees=answer" in critique
    assert "An earlier solution:\n«It is 3.»\n\nFeedback on it:\n«No.»\n\nSolve" in refinement
    assert "«" not in answer and "No." not in critique


def test_sampled_texts_are_marked_and_count_only_where_they_are_given(folder: Path, tokenizer: Tokenizer) -> None:
    *_, without = preview(folder / "recipe.yaml")
    *_, given = preview(folder / "recipe.yaml", "--response", "It is 3.")
    assert "«response»" in without and "«critique»" in without and "«critique»" in given
    lengths = [int(text.split(" tokens ---")[0].split()[-1]) for text in (without, given)]
    assert lengths[1] - lengths[0] == len(tokenizer.encode("It is 3."))


def test_the_embedded_task_has_its_own_prompts() -> None:
    problem, answer, _, refinement = preview(ROOT / "examples/sandbox.yaml", "--id", "test-1")
    assert problem.startswith("problem test-1, answer: ")
    assert "Question: " in answer and "Attempt: «response»\nCritique: «critique»\nAnswer: " in refinement


def test_an_unknown_problem_and_a_wrong_template_are_refused(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["preview", str(folder / "recipe.yaml"), "--id", "three"])
    assert result.exit_code == 2
    assert "--id=three: there is no such problem among 2, such as one" in result.output
    template = tmp_path / "mine.jinja"
    template.write_text("{{ question }}\n{{ hint }}")
    result = CliRunner().invoke(app, ["preview", str(folder / "recipe.yaml"), f"task.templates.answer={template}"])
    assert result.exit_code == 2
    assert f"{template}, line 2: 'hint' is unknown; it can use question" in result.output

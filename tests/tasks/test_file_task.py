import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import FileTaskConfig
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.tasks.build import build_task
from megatron_cgrpo.tasks.file_task import FileTask
from megatron_cgrpo.types import FinishReason

ROWS = [
    {"id": "a", "question": "What is {1}+1?", "answer": "2"},
    {"id": "b", "question": "½ as decimal", "answer": 0.5},
]


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level tokenizer, as real models have."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    directory = tmp_path_factory.mktemp("english")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(str(directory))
    return load_tokenizer(directory)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.jsonl", ROWS)


def build(train: Path, test: Path, tokenizer: Tokenizer, template: str = "{question}\n") -> FileTask:
    task = build_task(FileTaskConfig(kind="file", train=train, test=test, prompt_template=template), tokenizer)
    assert isinstance(task, FileTask)
    return task


def test_jsonl_rows_become_prompts(good: Path, english: Tokenizer) -> None:
    first, second = build(good, good, english, "Q: {question}\nA:").prompts("train")
    assert (first.id, first.question, first.answer) == ("a", "What is {1}+1?", "2")
    assert english.decode(first.token_ids) == "Q: What is {1}+1?\nA:"
    assert english.decode(second.token_ids) == "Q: ½ as decimal\nA:"


def test_parquet_holds_the_same_as_jsonl(tmp_path: Path, good: Path, english: Tokenizer) -> None:
    rows = [{**row, "answer": str(row["answer"])} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    task = build(tmp_path / "rows.parquet", good, english)
    assert task.prompts("train") == task.prompts("test")


def test_rows_without_ids_are_numbered(tmp_path: Path, english: Tokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "1"}] * 2)
    task = build(path, path, english)
    assert [prompt.id for split in ("train", "test") for prompt in task.prompts(split)] == [
        "train-0",
        "train-1",
        "test-0",
        "test-1",
    ]


def test_answers_are_compared_as_text_and_as_numbers(good: Path, english: Tokenizer) -> None:
    task = build(good, good, english)
    half = task.prompts("train")[1]
    assert asyncio.run(task.verify(half, r"It is \boxed{1/2}.", FinishReason.STOP)).correct
    assert asyncio.run(task.verify(half, r"It is \boxed{2}.", FinishReason.STOP)).cause == "wrong"
    assert asyncio.run(task.verify(half, "I do not know.", FinishReason.STOP)).cause == "no_answer"
    assert asyncio.run(task.verify(half, r"It is \boxed{1/2", FinishReason.LENGTH)).cause == "truncated"


def test_feedback_is_english_and_no_program_checks_it(good: Path, english: Tokenizer) -> None:
    task = build(good, good, english)
    prompt = task.prompts("train")[0]
    assert task.indicative(prompt, True) == "The generated solution is correct."
    expected = "The generated solution is incorrect. The ground truth is 2."
    assert task.indicative_with_answer(prompt, False) == expected
    assert asyncio.run(task.program_critique(prompt, "anything")) is None


def test_a_refinement_prompt_embeds_the_sampled_ids(good: Path, english: Tokenizer) -> None:
    task = build(good, good, english)
    prompt, eos = task.prompts("train")[0], english.eos_token_id
    sampled = [200, 201, 202]  # not valid UTF-8: no text encodes to this
    asked = task.refinement_prompt(prompt, [*sampled, eos], english.encode("It is wrong."))
    start = asked.index(200)
    assert asked[: len(prompt.token_ids)] == prompt.token_ids
    assert asked[start : start + 3] == sampled
    assert eos not in asked
    assert english.decode(asked[:start]).endswith("An earlier solution:\n")
    after = english.decode(asked[start + 3 :])
    assert after.startswith("\n\nFeedback on it:\nIt is wrong.\n\nSolve the problem again")


def test_a_critic_is_shown_what_it_may_see_around_the_sampled_ids(tmp_path: Path, english: Tokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "What is 1+1?", "answer": "2", "solution": "One more than 1."}])
    task = build(path, path, english, "Solve: {question}\n")
    prompt, sampled = task.prompts("train")[0], [200, 201, 202]  # not valid UTF-8: no text encodes to this
    texts = {}
    for sees in ("nothing", "answer", "solution"):
        asked = task.critique_prompt(prompt, [*sampled, english.eos_token_id], sees)
        start = asked.index(200)
        assert asked[start : start + 3] == sampled and english.eos_token_id not in asked
        assert english.decode(asked[:start]) == "Problem:\nWhat is 1+1?\n\nA proposed solution:\n"
        texts[sees] = english.decode(asked[start + 3 :])
        question = task.critique_question(prompt, "It is 3.", sees)
        assert question == f"{english.decode(asked[:start])}It is 3.{texts[sees]}"
    assert texts["nothing"].startswith("\n\nCheck the proposed solution step by step.")
    assert all(f"Conclusion: {verdict} [END]" in texts["nothing"] for verdict in ("correct", "incorrect"))
    assert texts["answer"] == "\n\nThe right answer is 2." + texts["nothing"]
    assert texts["solution"] == "\n\nA reference solution, which is right:\nOne more than 1." + texts["nothing"]


def test_a_reference_solution_that_is_not_there_is_asked_for(good: Path, english: Tokenizer) -> None:
    task = build(good, good, english)
    with pytest.raises(ConfigError, match=r"critic.sees=solution: prompt a has no .*: add a 'solution'"):
        task.critique_prompt(task.prompts("train")[0], [], "solution")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "has no rows"),
        ("\n \n", "has no rows"),
        ('{"question": "q"}', "row 0 has no 'answer'"),
        ('{"answer": "1"}', "row 0 has no 'question'"),
        ('{"question": "q", "answer": null}', "row 0 has no 'answer'"),
        ('{"question": "q", "answer": "1"}\n{broken', "line 2 is not valid JSON"),
        ("[1, 2]", "line 1 is not an object"),
        (
            '{"id": 1, "question": "q", "answer": "1"}\n{"id": "1", "question": "p", "answer": "1"}',
            "id '1' occurs twice",
        ),
    ],
)
def test_a_bad_file_is_refused_by_name(
    content: str | None, message: str, tmp_path: Path, good: Path, english: Tokenizer
) -> None:
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_text(content)
    with pytest.raises(ConfigError, match=message) as refused:
        build(good, bad, english)
    assert f"task.test={bad}" in str(refused.value)


def test_other_formats_and_broken_parquet_are_refused(tmp_path: Path, good: Path, english: Tokenizer) -> None:
    for name, message in (("rows.csv", "use .jsonl or .parquet"), ("rows.parquet", "cannot be read as parquet")):
        (tmp_path / name).write_text("question,answer\n1,2\n")
        with pytest.raises(ConfigError, match=message):
            build(tmp_path / name, good, english)


def test_a_template_without_the_question_is_refused(good: Path, english: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="prompt_template"):
        build(good, good, english, "Solve it.")

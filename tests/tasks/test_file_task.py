"""Problems from files: prompts, verification by domain, critiques and support."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bpe_model import write_tokenizer

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import FileTaskConfig
from megatron_cgrpo.critique.conclusion import parse_conclusion
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.tasks.build import build_task
from megatron_cgrpo.tasks.problems.task import FileTask
from megatron_cgrpo.types import FinishReason, Prompt

ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": "What is {{1}}+1?", "answer": "2"},
    {"id": "b", "question": "½ as decimal", "answer": 0.5, "solution": "Half of one."},
]
DOUBLE = {"asserts": ["assert double(2) == 4", "assert double(0) == 0"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of a base model, without chat template."""
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("base"), chat_template=None))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chat")))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def build(file: Path, tokenizer: Tokenizer, **settings: Any) -> FileTask:
    task = build_task(FileTaskConfig(kind="file", train=file, test=file, **settings), tokenizer)
    assert isinstance(task, FileTask)
    return task


@pytest.fixture
def task(tmp_path: Path, base: Tokenizer) -> Iterator[FileTask]:
    with closing(build(write(tmp_path / "rows.jsonl", ROWS), base)) as task:
        yield task


def unwritable(tokenizer: Tokenizer) -> list[int]:
    """Ids that no text encodes to: bytes that UTF-8 does not have."""
    return [tokenizer.vocabulary["ÿ"], tokenizer.vocabulary["þ"], tokenizer.vocabulary["ÿ"]]


def verdict(task: FileTask, prompt: Prompt, response: str, finish: FinishReason = FinishReason.STOP) -> str:
    return asyncio.run(task.verify(prompt, response, finish)).cause


def test_a_row_becomes_a_prompt(task: FileTask, base: Tokenizer) -> None:
    first, second = task.prompts("train")
    assert (first.id, first.question, first.answer) == ("a", "What is {{1}}+1?", "2")
    asked = "What is {{1}}+1?\nPlease reason step by step, and put your final answer within \\boxed{}.\n"
    assert base.decode(first.token_ids) == asked
    assert (second.answer, task.solution(first)) == ("0.5", None)
    assert task.solution(second) == [*base.encode("Half of one."), base.eos_token_id]
    assert task.ask(first.question).token_ids == first.token_ids


def test_math_is_verified_as_mathematics(task: FileTask) -> None:
    half = task.prompts("test")[1]
    assert verdict(task, half, r"It is \boxed{\frac{1}{2}}.") == "correct"
    assert verdict(task, half, r"It is \boxed{\frac{\sqrt{4}}{4}}.") == "correct", "by computer algebra"
    assert verdict(task, half, r"It is \boxed{2}.") == "wrong"
    assert verdict(task, half, "I do not know.") == "no_answer"
    assert verdict(task, half, r"It is \boxed{1/2}.", FinishReason.LENGTH) == "truncated"


def test_the_domain_decides_what_is_asked_and_what_is_right(tmp_path: Path, base: Tokenizer) -> None:
    file = write(tmp_path / "choice.jsonl", [{"question": "(A) 3 (B) 4", "answer": "B"}])
    with closing(build(file, base, domain="choice")) as task:
        [prompt] = task.prompts("train")
        assert "letter of the one right option" in base.decode(prompt.token_ids)
        assert (verdict(task, prompt, "The answer is B."), verdict(task, prompt, "A")) == ("correct", "wrong")


@pytest.mark.parametrize(
    ("domain", "answer", "message"),
    [
        ("math", "$ $", "is empty; math needs"),
        ("choice", "12", "answer '12' is no option; choice needs one letter, A-J"),
        ("choice", "A or B", "is no option"),
        ("exact", r"\,", "is empty; exact needs"),
    ],
)
def test_an_answer_that_is_not_of_the_domain_is_refused_with_its_row(
    tmp_path: Path, base: Tokenizer, domain: str, answer: str, message: str
) -> None:
    """Else every response would get ``error:answer``."""
    good = {"math": "1", "choice": "(B)", "exact": "[1, 2]"}[domain]
    file = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": good}, {"question": "p", "answer": answer}])
    with pytest.raises(ConfigError, match=r"rows.jsonl: row 1 \(row-1\): ") as refused:
        build(file, base, domain=domain)
    assert message in str(refused.value)


def test_feedback_says_what_it_may(task: FileTask) -> None:
    prompt = task.prompts("train")[0]
    assert task.indicative(prompt, True) == "The generated solution is correct."
    assert task.indicative_with_answer(prompt, False) == "The generated solution is incorrect. The ground truth is 2."
    assert asyncio.run(task.program_critique(prompt, "anything")) is None


def test_code_is_criticised_by_its_tests(tmp_path: Path, base: Tokenizer) -> None:
    file = write(tmp_path / "code.jsonl", [{"question": "Double a number.", "answer": DOUBLE}])
    with closing(build(file, base, domain="code", allow_weak_sandbox=True)) as task:
        [prompt] = task.prompts("train")
        wrong, right = (f"```python\ndef double(x):\n    return x{sign} 2\n```" for sign in ("+", "*"))
        text = asyncio.run(task.program_critique(prompt, wrong))
        assert text is not None and "double(0)" in text and "`0`" in text and "`2`" in text
        assert parse_conclusion(text).correct is False
        assert parse_conclusion(asyncio.run(task.program_critique(prompt, right)) or "").correct is True
        assert (verdict(task, prompt, right), verdict(task, prompt, wrong)) == ("correct", "wrong")
        assert task.supported(prompt, right, wrong)
    untested = write(tmp_path / "untested.jsonl", [{"question": "Double a number.", "answer": "{}"}])
    with pytest.raises(ConfigError, match=rf"task.train={untested}: row 0 \(row-0\): answer has no tests"):
        build(untested, base, domain="code", allow_weak_sandbox=True)


def test_a_refinement_prompt_takes_in_the_sampled_ids(task: FileTask, base: Tokenizer) -> None:
    prompt, sampled = task.prompts("train")[0], unwritable(base)
    critique = [*sampled[:2], base.eos_token_id]
    ids = task.refinement_prompt(prompt, [*sampled, base.eos_token_id], critique)
    expected = [
        *base.encode("What is {{1}}+1?\n\nAn earlier solution:\n"),
        *sampled,
        *base.encode("\n\nFeedback on it:\n"),
        *sampled[:2],
        *base.encode(
            "\n\nSolve the problem again from the beginning, using the feedback. Please reason step by step, and put "
            "your final answer within \\boxed{}.\n"
        ),
    ]
    assert ids == expected
    assert not set(sampled) & set(prompt.token_ids), "what trains is conditioned on the question alone"


@pytest.mark.parametrize(
    "hostile", ["{{ answer }}{% raw %}", "[[0:0]] [[0:1]]", "{# [[1:0]]", "<|im_end|>\n<|im_start|>"]
)
def test_what_a_sampled_text_or_a_question_says_does_not_matter(tmp_path: Path, chat: Tokenizer, hostile: str) -> None:
    file = write(tmp_path / "rows.jsonl", [{"question": f"Q {hostile}", "answer": "[[0:0]]"}])
    with closing(build(file, chat)) as task:
        [prompt] = task.prompts("train")
        attempt, critique = chat.encode(hostile), chat.encode(f"{hostile} no")
        plain = task.refinement_prompt(prompt, [], [])
        ids = task.refinement_prompt(prompt, attempt, critique)
        at = plain_prefix(plain, ids)
        assert ids[at : at + len(attempt)] == attempt
        assert len(ids) == len(plain) + len(attempt) + len(critique)
        asked = task.critique_prompt(prompt, attempt, "answer")
        assert len(asked) == len(task.critique_prompt(prompt, [], "answer")) + len(attempt)
        assert f"A proposed solution:\n{hostile}\n\nThe right answer is [[0:0]]." in task.critique_question(
            prompt, hostile, "answer"
        )


def plain_prefix(plain: list[int], ids: list[int]) -> int:
    """How far the two agree: to where the first sampled text goes."""
    return next(i for i in range(len(plain)) if plain[i] != ids[i])


def test_a_critic_is_shown_what_it_may_see(task: FileTask, base: Tokenizer) -> None:
    prompt, sampled = task.prompts("train")[1], unwritable(base)
    before = base.encode("Problem:\n½ as decimal\n\nA proposed solution:\n")
    hints = {
        "nothing": "",
        "answer": "The right answer is 0.5.\n\n",
        "solution": "A reference solution, which is right:\nHalf of one.\n\n",
    }
    for sees, hint in hints.items():
        ids = task.critique_prompt(prompt, [*sampled, base.eos_token_id], sees)
        assert ids[: len(before) + 3] == [*before, *sampled]
        rest = base.decode(ids[len(before) + 3 :])
        assert rest.startswith(f"\n\n{hint}Check the proposed solution step by step.")
        assert rest.endswith("`Conclusion: incorrect [END]` if it is not.\n\nAnalysis:\n")
        question = task.critique_question(prompt, "It is 3.", sees)
        assert question == f"{base.decode(before)}It is 3.{rest}".strip()
    with pytest.raises(ConfigError, match=r"critic.sees=solution: prompt a has no .*: add a 'solution'"):
        task.critique_prompt(task.prompts("train")[0], [], "solution")


def test_a_chat_template_frames_every_prompt(tmp_path: Path, chat: Tokenizer, base: Tokenizer) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS[:1])
    question = "What is {{1}}+1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    framed = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    told = f"<|im_start|>system\nBe brief.<|im_end|>\n{framed}"
    for settings, expected in (
        ({}, framed),
        ({"chat": True, "system": "Be brief."}, told),
        ({"chat": False}, f"{question}\n"),
        ({"chat": False, "system": "Be brief."}, f"Be brief.\n\n{question}\n"),
    ):
        with closing(build(file, chat, **settings)) as task:
            [prompt] = task.prompts("train")
            assert chat.show(prompt.token_ids) == expected
            if settings.get("chat", True):
                assert chat.show(task.refinement_prompt(prompt, [], [])).endswith("<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ConfigError, match=r"task.chat=on: the model's tokenizer has no chat template"):
        build(file, base, chat=True)


def test_a_rows_own_system_message_is_kept_unless_the_recipe_has_one(tmp_path: Path, chat: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "1+1?"}]
    file = write(tmp_path / "rows.jsonl", [{"prompt": messages, "reward_model": {"ground_truth": "2"}}])
    for system, expected in ((None, "Be kind."), ("Be brief.", "Be brief.")):
        with closing(build(file, chat, system=system)) as task:
            [prompt] = task.prompts("train")
            for ids in (prompt.token_ids, task.refinement_prompt(prompt, [], [])):
                assert chat.show(ids).startswith(f"<|im_start|>system\n{expected}<|im_end|>\n")

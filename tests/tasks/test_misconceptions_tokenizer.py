import asyncio
import itertools
from pathlib import Path

import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import vocabulary, write_tokenizer


def test_every_text_of_the_task_survives_the_round_trip(task: MisconceptionsTask, tokenizer: Tokenizer) -> None:
    prompts = task.prompts("test")
    texts = [
        asyncio.run(task.program_critique(prompt, response)) or "" for prompt in prompts for response in ("", "1+1=3")
    ]
    texts += [task.indicative_with_answer(prompt, correct) for prompt in prompts for correct in (True, False)]
    texts += [tokenizer.decode(row) for row, _ in itertools.islice(task.corpus(0), 100)]
    texts += [r"7*8=6;6-9=7;7+4=1;\boxed{1}", "", "}};;"]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_sequence_of_ids_survives_the_round_trip_too(tokenizer: Tokenizer) -> None:
    ids = [i for i, token in enumerate(vocabulary()) if not token.startswith("<")]
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_phrases_and_operations_are_one_token(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode(r"7*8=6;\boxed{6}")] == [
        *("7", "*8", "=", "6", ";"),
        *("\\boxed{", "6", "}"),
    ]
    critique = "Step 2 is wrong, it should be 7*8=6. Conclusion: incorrect [END]"
    assert [tokenizer.decode([i]) for i in tokenizer.encode(critique)] == [
        *("Step ", "2", " is wrong, it should be "),
        *("7", "*8", "=", "6"),
        ". Conclusion: incorrect [END]",
    ]


def test_an_operation_in_a_question_is_the_token_that_its_step_uses(tokenizer: Tokenizer) -> None:
    question, step = tokenizer.encode("2+7*8"), tokenizer.encode("9*8=2")
    assert question[2] == step[1]


def test_tensor_parallel_ranks_can_share_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == len(vocabulary()) == len(set(vocabulary()))
    assert tokenizer.vocab_size % 16 == 0


def test_foreign_text_is_an_error_not_an_unknown_token(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="text 'hello'.*UNK"):
        tokenizer.encode("hello")


def test_writing_twice_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tokenizer(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "tokenizer.json" in files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)

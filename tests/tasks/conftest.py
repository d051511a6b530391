import pytest

from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.tasks.misconceptions.task import MisconceptionsTask
from megatron_cgrpo.tasks.misconceptions.tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def task(tokenizer: Tokenizer) -> MisconceptionsTask:
    return MisconceptionsTask(MisconceptionsConfig(train_problems=400, test_problems=100), tokenizer)

import json
from pathlib import Path

import pytest

from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer


def write_words(directory: Path, eos: str | None = "<eos>") -> Path:
    """A word-level tokenizer that would add a beginning-of-sequence token if it were asked for special tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"<bos>": 0, "<eos>": 1, "a": 2, "b": 3}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=eos)
    tokenizer.add_tokens(["c"])
    tokenizer.save_pretrained(str(directory))
    return directory


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_words(tmp_path))


def test_only_the_text_is_encoded(words: Tokenizer) -> None:
    assert words.encode("a b a") == [2, 3, 2]


def test_special_tokens_are_left_out_of_the_text(words: Tokenizer) -> None:
    assert words.decode([0, 2, 3, 1]) == "a b"


def test_ids(words: Tokenizer) -> None:
    assert words.eos_token_id == 1
    assert words.pad_token_id == 1, "end-of-sequence where there is no padding token"
    assert words.vocab_size == 5, "added tokens count"


def test_a_saved_tokenizer_is_the_same(words: Tokenizer, tmp_path: Path) -> None:
    words.save(tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.encode("a c b") == words.encode("a c b") == [2, 4, 3]
    assert copy.eos_token_id == 1


def test_no_tokenizer_is_reported_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none: no tokenizer.*tokenizer.json"):
        load_tokenizer(tmp_path / "none")


def test_a_broken_tokenizer_is_reported_with_the_path(tmp_path: Path) -> None:
    write_words(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_no_end_of_sequence_is_reported(tmp_path: Path) -> None:
    write_words(tmp_path, eos=None)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()).get("eos_token") is None
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer has no end-of-sequence"):
        load_tokenizer(tmp_path)

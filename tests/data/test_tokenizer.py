import json
from pathlib import Path

import pytest

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer


def write_words(directory: Path, eos: str | None = "<eos>", chat_template: str | None = None) -> Path:
    """A word-level tokenizer that would add a beginning-of-sequence token if it were asked for special tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"<bos>": 0, "<eos>": 1, "a": 2, "b": 3}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=eos)
    tokenizer.add_tokens(["c"])
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(str(directory))
    return directory


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_words(tmp_path))


def test_only_the_text_is_encoded(words: Tokenizer) -> None:
    assert words.encode("a b a") == [2, 3, 2]


def test_special_tokens_are_left_out_of_the_text(words: Tokenizer) -> None:
    assert words.decode([0, 2, 3, 1]) == "a b"


def test_text_for_people_keeps_special_tokens(words: Tokenizer) -> None:
    assert words.show([0, 2, 3, 1]) == "<bos> a b <eos>"


def test_a_conversation_is_written_by_the_tokenizers_own_template(tmp_path: Path, words: Tokenizer) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}model:{% endif %}"
    )
    chat = load_tokenizer(write_words(tmp_path / "chat", chat_template=template))
    assert (chat.has_chat_template, words.has_chat_template) == (True, False)
    user = {"role": "user", "content": "a b"}
    assert chat.chat([user]) == "<bos>user: a b model:"
    with pytest.raises(ConfigError, match=r"refuses a conversation of system, user \(no system\): set task.chat=off"):
        chat.chat([{"role": "system", "content": "b"}, user])


def test_ids(words: Tokenizer) -> None:
    assert words.eos_token_id == 1
    assert words.pad_token_id == 1, "end-of-sequence where there is no padding token"
    assert words.vocab_size == 5, "added tokens count"


def test_added_tokens_are_encoded(words: Tokenizer) -> None:
    assert words.encode("a c b") == [2, 4, 3]


def test_text_that_the_vocabulary_cannot_write_is_named(words: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="text 'a z': the tokenizer refuses it"):
        words.encode("a z")


def test_a_vocabulary_with_merges_is_a_tokenizer_too(tmp_path: Path) -> None:
    """The files of a checkpoint from before tokenizer.json."""
    characters = ["a", "b", "ab", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(characters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).encode("aab") == [0, 2]


def test_a_configuration_alone_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no tokenizer there"):
        load_tokenizer(tmp_path)


def test_no_tokenizer_is_reported_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}/none: no tokenizer.*tokenizer.json"):
        load_tokenizer(tmp_path / "none")


def test_a_broken_tokenizer_is_reported_with_the_path(tmp_path: Path) -> None:
    write_words(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=f"{tmp_path}: the tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_no_end_of_sequence_is_reported(tmp_path: Path) -> None:
    write_words(tmp_path, eos=None)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()).get("eos_token") is None
    with pytest.raises(ConfigError, match=f"{tmp_path}: the tokenizer has no end-of-sequence"):
        load_tokenizer(tmp_path)

"""Real tokenizers of both kinds are carried and checked; what does not fit the model is refused or reported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import models, pre_tokenizers, trainers

from checkpoints_convert.tokenizer import TokenizerReport, check_tokenizer
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.hf_writer import copy_carried_files

LINES = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 5
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def save(folder: Path, backend: tokenizers.Tokenizer, **special: str) -> int:
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)
    return len(fast)


def word_level(folder: Path) -> int:
    """Ids: <unk> 0, <s> 1, </s> 2, words behind them; no padding token."""
    words = sorted({word for line in LINES for word in line.split()})
    vocabulary = {token: number for number, token in enumerate([*SPECIAL.values(), *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return save(folder, backend, **SPECIAL)


def bpe(folder: Path) -> int:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=60, special_tokens=list(SPECIAL.values())))
    return save(folder, backend, **SPECIAL)


def sentencepiece(folder: Path, kind: str = "unigram", **ids: int) -> int:
    """Ids unless given: <unk> 0, <s> 1, </s> 2, no padding."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=36, model_type=kind, hard_vocab_limit=False,
        minloglevel=2, **ids,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return int(SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


def put(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


def carry(source: Path, vocab: int) -> TokenizerReport:
    target = source.parent / "target"
    target.mkdir()
    report = check_tokenizer(source, vocab)
    copy_carried_files(source, target)
    carried = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert carried == set(report.files)
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in carried)
    return report


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize("build", [word_level, bpe])
def test_a_tokenizer_is_carried_whole(source: Path, build: Any) -> None:
    tokens = build(source)
    put(source / "config.json", bos_token_id=1, eos_token_id=2, pad_token_id=None, vocab_size=tokens + 5)
    put(source / "generation_config.json", eos_token_id=[2, 5], pad_token_id=2)
    report = carry(source, tokens + 5)
    assert (report.tokens, report.padding, report.warnings) == (tokens, 5, ())
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= set(
        report.files
    )
    assert "config.json" not in report.files
    text = "the lazy dog"
    both = [transformers.AutoTokenizer.from_pretrained(path) for path in (source, source.parent / "target")]
    assert both[0].encode(text) == both[1].encode(text) and both[0].chat_template == both[1].chat_template


def test_every_token_needs_a_row_of_the_embedding(source: Path) -> None:
    tokens = word_level(source)
    with pytest.raises(ConfigError, match=f"vocab_size={tokens - 1}: the tokenizer has ids up to {tokens - 1}"):
        carry(source, tokens - 1)
    assert list((source.parent / "target").iterdir()) == [], "nothing of a refused tokenizer is copied"


def test_the_highest_id_counts_where_ids_have_gaps(source: Path) -> None:
    save(source, tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "a": 9}, unk_token="<unk>")), unk_token="<unk>")
    with pytest.raises(ConfigError, match="vocab_size=9: the tokenizer has ids up to 9"):
        carry(source, 9)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [999, -1, "2", True, [2, 999]])
def test_special_ids_are_ids_of_the_vocabulary(source: Path, name: str, value: Any) -> None:
    tokens = word_level(source)
    put(source / name, eos_token_id=value)
    with pytest.raises(ConfigError, match=r"eos_token_id=.* in .* is no id of a vocabulary") as refused:
        carry(source, tokens)
    assert repr(value) in str(refused.value) and name in str(refused.value)


def test_contradictions_are_reported(source: Path) -> None:
    tokens = word_level(source)
    put(source / "config.json", bos_token_id=1, eos_token_id=[3, 4], pad_token_id=7)
    put(source / "generation_config.json", eos_token_id=[4, 2], pad_token_id=8)
    assert set(carry(source, tokens).warnings) == {
        "eos_token_id is 2 in the tokenizer, but 3 or 4 in config.json",
        "pad_token_id is 7 in config.json, but 8 in generation_config.json",
    }


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_sentencepiece_model_alone(source: Path, kind: str) -> None:
    pieces = sentencepiece(source, kind)
    put(source / "config.json", bos_token_id=1, eos_token_id=5)
    report = carry(source, pieces + 2)
    assert report.files == ("tokenizer.model",)
    assert (report.tokens, report.padding) == (pieces, 2)
    assert report.warnings == ("eos_token_id is 2 in tokenizer.model, but 5 in config.json",)
    with pytest.raises(ConfigError, match=f"vocab_size={pieces - 1}: tokenizer.model has ids up to {pieces - 1}"):
        check_tokenizer(source, pieces - 1)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_transformers_on_a_sentencepiece_model(source: Path, kind: str) -> None:
    pieces = sentencepiece(source, kind)
    put(source / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", **SPECIAL)
    put(source / "added_tokens.json", **{"<pad>": pieces})
    report = carry(source, pieces + 1)
    assert report.warnings == () and report.tokens == pieces + 1
    assert report.files == ("added_tokens.json", "tokenizer.model", "tokenizer_config.json")


def test_a_sentencepiece_model_of_another_tokenizer_is_reported(source: Path) -> None:
    tokens = word_level(source)
    pieces = sentencepiece(source, bos_id=2, eos_id=1)
    assert pieces > tokens
    assert set(carry(source, 64).warnings) == {
        f"tokenizer.model has {pieces} pieces, the tokenizer only {tokens} tokens",
        "bos_token_id is 1 in the tokenizer, but 2 in tokenizer.model",
        "eos_token_id is 2 in the tokenizer, but 1 in tokenizer.model",
    }


@pytest.mark.parametrize("kept", [0, 100, -7])
def test_a_damaged_sentencepiece_model_is_named(source: Path, kept: int) -> None:
    sentencepiece(source)
    path = source / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match="tokenizer.model is damaged, or no SentencePiece model"):
        carry(source, 64)


def test_a_damaged_tokenizer_is_named(source: Path) -> None:
    word_level(source)
    path = source / "tokenizer.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ConfigError, match="source: the tokenizer cannot be read"):
        carry(source, 64)


def test_a_tiktoken_vocabulary_is_carried_unchecked(source: Path) -> None:
    (source / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    report = carry(source, 64)
    assert report.tokens is None and report.files == ("tokenizer.model",)
    assert report.warnings == ("tokenizer.model is a tiktoken vocabulary: it is not checked",)


def test_no_tokenizer_is_reported(source: Path) -> None:
    put(source / "generation_config.json", eos_token_id=2)
    report = carry(source, 64)
    assert report == TokenizerReport(("generation_config.json",), None, None, report.warnings)
    assert len(report.warnings) == 1 and "has no tokenizer" in report.warnings[0]


@pytest.mark.parametrize("named_in", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_with_code_is_not_run(source: Path, named_in: str) -> None:
    pieces = sentencepiece(source)
    marker = source / "ran"
    (source / "tokenization_own.py").write_text(f"open({str(marker)!r}, 'w')\nclass OwnTokenizer: pass\n")
    put(source / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    put(source / named_in, auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]})
    report = carry(source, 64)
    assert not marker.exists() and "tokenization_own.py" not in report.files
    assert report.tokens == pieces and "brings its own code" in report.warnings[0]
    assert {"tokenizer.model", "tokenizer_config.json"} <= set(report.files)

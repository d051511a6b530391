"""Tokenizer and generation settings of a model, checked against it before they are carried to its converted form.

The tokenizer is loaded as its users will load it. What contradicts the embedding is refused; what contradicts another
file is reported, since published models do so and still work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.model_files import CONFIG, GENERATION_CONFIG, carried_files, has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KINDS = ("bos", "eos", "pad")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TRANSFORMERS_FILES = ("tokenizer.json", "vocab.json", _TOKENIZER_CONFIG)

SpecialIds = dict[str, frozenset[int]]
"""``bos``, ``eos``, ``pad`` -> ids; none where the file does not say."""


@dataclass(frozen=True)
class TokenizerReport:
    """``files`` were carried. ``tokens``: ids in use, None where no tokenizer could be read.

    ``padding``: rows of the embedding behind the highest id. ``warnings`` have one sentence each.
    """

    files: tuple[str, ...]
    tokens: int | None
    padding: int | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Vocabulary:
    """Of one file or tokenizer: number of ids, highest id, special ids."""

    source: str
    tokens: int
    highest: int
    special: SpecialIds


def check_tokenizer(source: Path, vocab: int) -> TokenizerReport:
    """Checks the tokenizer of a model whose embedding has ``vocab`` rows (``vocab_size`` of config.json).

    Raises ConfigError where a file is damaged, or a token's or special id has no row in the embedding. A tokenizer that
    brings its own code is not run: its vocabulary is then known from a SentencePiece model only, or not at all.
    """
    found, warnings = _vocabularies(source)
    for vocabulary in found:
        if vocabulary.highest >= vocab:
            raise ConfigError(
                f"vocab_size={vocab}: {vocabulary.source} has ids up to {vocabulary.highest}: give the tokenizer that "
                "belongs to this model, or resize the model's embedding"
            )
    special = {vocabulary.source: vocabulary.special for vocabulary in found}
    for name in (CONFIG, GENERATION_CONFIG):
        if (source / name).is_file():
            special[name] = _special_ids(source / name, vocab)
    warnings += [*_different_sizes(found), *_contradictions(special)]
    files = tuple(str(file) for file in carried_files(source))
    if not found:
        return TokenizerReport(files, None, None, tuple(warnings))
    return TokenizerReport(files, found[0].tokens, vocab - 1 - found[0].highest, tuple(warnings))


def _vocabularies(source: Path) -> tuple[list[_Vocabulary], list[str]]:
    """The tokenizer as transformers loads it first, then each SentencePiece model; and what could not be read."""
    found, warnings = [], []
    if not has_tokenizer(source):
        warnings.append(f"{source} has no tokenizer: carry one along before the model is used")
    if _runs_code(source):
        warnings.append(
            f"the tokenizer of {source} brings its own code, which is neither run nor carried: it is not checked"
        )
    elif any((source / name).is_file() for name in _TRANSFORMERS_FILES):
        found.append(_load(source))
    for file in carried_files(source):
        if ".model" not in file.suffixes:
            continue
        if _is_tiktoken(source / file):
            warnings.append(f"{file} is a tiktoken vocabulary: it is not checked")
        else:
            found.append(_sentencepiece(source / file))
    return found, warnings


def _load(source: Path) -> _Vocabulary:
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a broken tokenizer raises whatever its format's parser raises
        raise ConfigError(f"{source}: the tokenizer cannot be read ({error}): download its files again") from error
    ids = tokenizer.get_vocab().values()
    special = {kind: _known([getattr(tokenizer, f"{kind}_token_id")]) for kind in _KINDS}
    return _Vocabulary("the tokenizer", len(tokenizer), max(ids, default=-1), special)


def _sentencepiece(path: Path) -> _Vocabulary:
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{path} is damaged, or no SentencePiece model ({error}): download it again") from error
    special = {"bos": processor.bos_id(), "eos": processor.eos_id(), "pad": processor.pad_id()}
    pieces = processor.get_piece_size()
    known = {kind: _known([number if number >= 0 else None]) for kind, number in special.items()}
    return _Vocabulary(path.name, pieces, pieces - 1, known)


def _special_ids(path: Path, vocab: int) -> SpecialIds:
    """Raises ConfigError naming an id that is none, or that the embedding has no row for."""
    content, special = read_json_object(path), {}
    for kind in _KINDS:
        key = f"{kind}_token_id"
        value = content.get(key)
        ids = value if isinstance(value, list) else [value]
        if not all(number is None or (type(number) is int and 0 <= number < vocab) for number in ids):
            raise ConfigError(
                f"{key}={value!r} in {path} is no id of a vocabulary of {vocab}: correct it, or set it to null"
            )
        special[kind] = _known(ids)
    return special


def _different_sizes(found: list[_Vocabulary]) -> Iterator[str]:
    """A tokenizer may add tokens to its SentencePiece model, but not leave any out."""
    for whole, part in combinations(found, 2):
        if part.highest > whole.highest:
            yield f"{part.source} has {part.tokens} pieces, {whole.source} only {whole.tokens} tokens"


def _contradictions(special: dict[str, SpecialIds]) -> Iterator[str]:
    """Two files contradict each other where both name ids and have none in common."""
    for kind in _KINDS:
        for (first, ids), (second, others) in combinations(((name, ids[kind]) for name, ids in special.items()), 2):
            if ids and others and not ids & others:
                yield f"{kind}_token_id is {_list(ids)} in {first}, but {_list(others)} in {second}"


def _runs_code(source: Path) -> bool:
    """Whether the tokenizer's class is Python code in its directory (or elsewhere), named by ``auto_map``."""
    maps: list[Any] = [
        read_json_object(source / name).get("auto_map")
        for name in (_TOKENIZER_CONFIG, CONFIG)
        if (source / name).is_file()
    ]
    # Before transformers 4.11 a tokenizer's auto_map was the list of its classes.
    return any(isinstance(found, list) or (isinstance(found, dict) and "AutoTokenizer" in found) for found in maps)


def _is_tiktoken(path: Path) -> bool:
    """Lines of a token in base64 and its rank, as Llama 3's original ``tokenizer.model``."""
    with path.open("rb") as file:
        fields = file.readline(1024).split()
    return len(fields) == 2 and fields[1].isdigit()


def _known(ids: list[int | None]) -> frozenset[int]:
    return frozenset(number for number in ids if number is not None)


def _list(ids: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(ids)))

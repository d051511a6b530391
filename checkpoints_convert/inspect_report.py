"""What a checkpoint holds, for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Kind = Literal["huggingface", "converted", "training", "megatron-lm", "megatron"]
_KINDS: dict[Kind, str] = {
    "huggingface": "Hugging Face model",
    "converted": "Megatron checkpoint, converted",
    "training": "checkpoint of a training run",
    "megatron-lm": "checkpoint of Megatron-LM",
    "megatron": "Megatron checkpoint",
}


@dataclass(frozen=True)
class DtypeCount:
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class Contents:
    """``parameters`` are exact, without vocabulary padding where config.json tells it; ``dtypes`` are as stored.

    ``shape`` is the architecture's; None without a config.json, or with one that is not supported (``notes`` say why).
    ``layout`` says its own source. ``state``: whether there is an optimiser's, a schedule's and a random one; None
    where that cannot be told. ``files`` are in bytes.
    """

    kind: Kind
    directory: str
    format: str
    architecture: str | None
    shape: dict[str, Any] | None
    parameters: int
    parameters_without_embeddings: int
    dtypes: dict[str, DtypeCount]
    layout: dict[str, Any] | None
    step: int | None
    state: dict[str, bool | None]
    tokenizer_files: list[str]
    packages: dict[str, str]
    files: dict[str, int]
    notes: list[str] = field(default_factory=list)


def print_contents(contents: Contents, console: Console) -> None:
    table = Table(show_header=False, title=escape(contents.directory))
    for name, value in _rows(contents):
        table.add_row(name, escape(value))
    console.print(table)


def _rows(contents: Contents) -> list[tuple[str, str]]:
    rows = [
        ("kind", f"{_KINDS[contents.kind]}, {contents.format}"),
        ("architecture", contents.architecture or "unknown"),
    ]
    if contents.shape:
        shown = {name: value for name, value in contents.shape.items() if name != "architecture" and value is not None}
        rows.append(("shape", _pairs(shown)))
    rows.append(("parameters", f"{contents.parameters:,} ({contents.parameters_without_embeddings:,} not embeddings)"))
    rows += [
        (name, f"{count.tensors:,} tensors, {count.elements:,} elements, {_size(count.bytes)}")
        for name, count in contents.dtypes.items()
    ]
    if contents.layout:
        rows.append(("layout", _pairs({name: value for name, value in contents.layout.items() if value is not None})))
    if contents.step is not None:
        rows.append(("step", str(contents.step)))
    answers = {True: "yes", False: "no", None: "unknown"}
    rows.append(("training state", ", ".join(f"{name} {answers[there]}" for name, there in contents.state.items())))
    rows.append(("tokenizer", ", ".join(contents.tokenizer_files) or "none"))
    rows.append(("packages", _pairs(contents.packages) or "unknown"))
    rows.append(("files", _files(contents.files)))
    return [*rows, *(("note", note) for note in contents.notes)]


def _files(sizes: dict[str, int]) -> str:
    """Numbers and sizes by kind: large checkpoints have hundreds."""
    counts: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for name, size in sizes.items():
        kind = Path(name).suffix or Path(name).name
        counts[kind] += 1
        nbytes[kind] += size
    kinds = [f"{count} {kind} {_size(nbytes[kind])}" for kind, count in counts.most_common()]
    return "; ".join([f"{len(sizes)}, {_size(sum(sizes.values()))}", *kinds])


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"

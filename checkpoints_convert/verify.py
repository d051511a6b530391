"""Whether a Hugging Face model and a Megatron checkpoint are the same model: named checks, each on its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from checkpoints_convert.digest import TensorRecord
from checkpoints_convert.locate import config_directory, megatron_directory
from checkpoints_convert.logits import LogitsOptions, check_logits, prepare_logits
from checkpoints_convert.manifest import MANIFEST, read_manifest
from checkpoints_convert.round_trip import Comparison, HFSide, MegatronSide, compare, recorded_problems
from checkpoints_convert.verify_chunks import chunk_problems, file_problems
from checkpoints_convert.verify_files import check_config, check_tokenizers
from checkpoints_convert.verify_report import Check, Report, attempt, judge
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.hf_config import read_model_shape
from megatron_cgrpo.config.model_files import BIN_INDEX, CONFIG
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.checkpoint_keys import find
from megatron_cgrpo.weights.coverage import Coverage, hf_coverage, is_tied, megatron_coverage
from megatron_cgrpo.weights.families import HF_EMBEDDING, HF_HEAD, model_weights
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.rows import take_rows
from megatron_cgrpo.weights.tensor_spec import dtype_name
from megatron_cgrpo.weights.torch_dist import TorchDistCheckpoint

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", BIN_INDEX)


def verify(
    hf: Path, megatron: Path, config: Path | None = None, threads: int = 1, logits: LogitsOptions | None = None
) -> Report:
    """Reads both directories once, a few tensors at a time; with ``logits``, each model whole in its own processes.

    ``config`` is where Megatron's config.json and tokenizer are, if not with it. Raises ConfigError where a directory
    is none of its kind, or the logits cannot be compared here; damage is a failed check.
    """
    weights_dir = megatron_directory(megatron)
    config_dir = config_directory(weights_dir, config) if config or (weights_dir / CONFIG).is_file() else None
    config_field = "--config" if config else "--megatron"
    shape = read_model_shape(hf, "--hf")
    if not any(path for pattern in _WEIGHTS for path in hf.glob(pattern)):
        raise ConfigError(f"--hf {hf}: has no *.safetensors: name the directory of a Hugging Face model")
    sequences = prepare_logits(hf, shape, logits) if logits else []
    pair = _Pair(hf, weights_dir, shape)
    checks = [
        *_file_checks(hf, config_dir, config_field, shape),
        *pair.metadata_checks(),
        *pair.content_checks(threads),
    ]
    if logits is not None:
        parallel = logits.parallel

        def compare_logits() -> Check:
            own_shape = read_model_shape(config_dir or hf, config_field)  # the trainer goes by Megatron's own
            return check_logits(hf, weights_dir, own_shape, sequences, parallel, pair.rounding())

        checks.append(attempt("logits", compare_logits))
    return Report(hf, megatron, checks)


def _file_checks(hf: Path, config_dir: Path | None, config_field: str, shape: ModelShape) -> list[Check]:
    if config_dir is None:
        missing = "the Megatron checkpoint carries none, and --config names none"
        return [Check(name, "skipped", missing) for name in ("config.json", "tokenizer")]
    return [
        attempt("config.json", lambda: check_config(hf, config_dir, config_field, shape)),
        attempt("tokenizer", lambda: check_tokenizers(hf, config_dir, shape.vocab)),
    ]


class _Pair:
    """Both checkpoints as far as they can be opened; a side that cannot is None and its ``damage`` says why."""

    def __init__(self, hf_dir: Path, megatron_dir: Path, shape: ModelShape) -> None:
        self._dirs, self._shape = {"Hugging Face": hf_dir, "Megatron": megatron_dir}, shape
        self._hf: HFCheckpoint | None = None
        self._megatron: TorchDistCheckpoint | None = None
        self._damage: dict[str, str] = {}
        try:
            self._hf = HFCheckpoint(hf_dir)
        except (ConfigError, OSError) as error:
            self._damage["Hugging Face"] = str(error)
        try:
            self._megatron = TorchDistCheckpoint(megatron_dir)
        except (ConfigError, OSError) as error:
            self._damage["Megatron"] = str(error)
        self._hf_coverage = hf_coverage(self._hf, shape) if self._hf else Coverage()
        self._megatron_coverage = megatron_coverage(self._megatron.tensors, shape) if self._megatron else Coverage()

    def metadata_checks(self) -> list[Check]:
        return [
            self._names("Hugging Face", self._hf_coverage),
            self._names("Megatron", self._megatron_coverage),
            *self._chunk_checks(),
            self._dtypes(),
        ]

    def content_checks(self, threads: int) -> list[Check]:
        hf = HFSide(self._hf, self._hf_coverage.sound) if self._hf else None
        keys = self._megatron_coverage.sound
        megatron = MegatronSide(self._megatron, keys, self._shape) if self._megatron else None
        found = compare(hf, megatron, self._shape, threads)
        return [
            _round_trip(found),
            self._recorded("Hugging Face", {each.name: each.hf for each in found}),
            self._recorded("Megatron", {each.name: each.megatron for each in found}),
            attempt("vocabulary padding", self._padding),
        ]

    def rounding(self) -> torch.dtype | None:
        """The less precise of the two sides' data types, if one side is a cast and it is the same for all tensors."""
        pairs = self._dtype_pairs()
        narrower = {min(pair, key=lambda dtype: dtype.itemsize) for pair in pairs}
        casts = any(theirs != ours for theirs, ours in pairs)
        return narrower.pop() if casts and len(narrower) == 1 else None

    def _names(self, side: str, coverage: Coverage) -> Check:
        name = f"{side} tensors"
        if side in self._damage:
            return Check(name, "failed", self._damage[side])
        problems = list(coverage.problems)
        if side == "Hugging Face" and self._hf and not is_tied(self._hf, self._shape):
            problems += [f"{HF_HEAD} differs from {HF_EMBEDDING}, though tie_word_embeddings is true"]
        return judge(name, problems, f"all {len(coverage.sound)}, no other, with the shapes of config.json")

    def _chunk_checks(self) -> list[Check]:
        checkpoint, keys = self._megatron, self._megatron_coverage.sound
        if checkpoint is None:
            return [Check(name, "skipped", self._damage["Megatron"]) for name in ("Megatron chunks", "Megatron files")]
        chunks = [chunk for chunk in checkpoint.chunks if chunk.key in keys]
        files = {chunk.file for chunk in chunks}
        covered = f"{len(chunks)} chunks cover each element of {len(keys)} tensors once"
        return [
            judge("Megatron chunks", list(chunk_problems(checkpoint, keys)), covered),
            judge("Megatron files", list(file_problems(checkpoint, keys)), f"{len(files)} files hold all chunks"),
        ]

    def _dtype_pairs(self) -> Counter[tuple[torch.dtype, torch.dtype]]:
        """(Hugging Face as read, Megatron) of each tensor that both have."""
        pairs: Counter[tuple[torch.dtype, torch.dtype]] = Counter()
        if self._hf is None or self._megatron is None:
            return pairs
        tensors = self._megatron.tensors
        for weight in model_weights(self._shape):
            key = find(weight, self._shape, tensors).key
            for name in weight.hf:
                if name in self._hf_coverage.sound and key in tensors:
                    pairs[self._hf.dtype(name), tensors[key].dtype] += 1
        return pairs

    def _dtypes(self) -> Check:
        pairs = self._dtype_pairs()
        if not pairs:
            return Check("data types", "skipped", "no tensor can be compared")
        stated = []
        for (theirs, ours), count in pairs.items():
            how = "the same" if theirs == ours else f"{dtype_name(ours)} in Megatron: a cast"
            stated.append(f"{count} tensors {dtype_name(theirs)}, {how}")
        wrong = [dtype_name(dtype) for pair in pairs for dtype in pair if not dtype.is_floating_point]
        problems = [f"{name} is no type of a model's weights" for name in dict.fromkeys(wrong)]
        return judge("data types", problems, "; ".join(stated))

    def _recorded(self, side: str, found: dict[str, TensorRecord | None]) -> Check:
        name, directory = f"{side} since conversion", self._dirs[side]

        def check() -> Check:
            manifest = read_manifest(directory)
            if manifest is None:
                return Check(name, "skipped", f"no {MANIFEST} in {directory}")
            agreed = f"{len(manifest.tensors)} tensors are as {MANIFEST} says"
            return judge(name, list(recorded_problems(manifest, found)), agreed)

        return attempt(name, check)

    def _padding(self) -> Check:
        """Rows behind the vocabulary have no effect, whatever they hold."""
        stated = []
        for weight in model_weights(self._shape):
            if not weight.vocab or self._megatron is None or weight.megatron not in self._megatron_coverage.sound:
                continue
            size = self._megatron.tensors[weight.megatron].shape
            if rows := size[0] - self._shape.vocab:
                pieces = take_rows(self._megatron.reader.rows(weight.megatron, (), size), self._shape.vocab, size[0])
                zero = "not zero" if any(piece.any() for piece in pieces) else "zero"
                stated.append(f"{rows} rows of {weight.megatron} behind the vocabulary, {zero}")
        if self._megatron is None:
            return Check("vocabulary padding", "skipped", self._damage["Megatron"])
        return Check("vocabulary padding", "passed", "; ".join(stated) or "none")


def _round_trip(found: list[Comparison]) -> Check:
    problems = [each.problem for each in found if each.problem]
    compared = sum(each.compared for each in found)
    if not compared and not problems:
        return Check("contents", "skipped", "no tensor can be read on both sides")
    casts = sum(each.compared and each.hf != each.cast for each in found)
    rounded = f", {casts} of them after the cast to the other's data type" if casts else ""
    agreed = f"{compared} of {len(found)} tensors give the same hashes{rounded}"
    return judge("contents", problems, agreed)

"""Checkpoints appear whole or not at all, and a damaged one is refused by the name of its file."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cgrpo.config.errors import CheckpointNotWritten, ConfigError
from megatron_cgrpo.config.parallel import OverlapConfig, ParallelConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.trainer.checkpoints import MANIFEST, POLICY, BaseModel, CheckpointStore, read_manifest

SAMPLER = SamplerState(seed=3, epoch=1, position=5, fingerprint="abc")
FINGERPRINT = "0123456789abcdef"
Save = Callable[..., Path]
RECIPE = Recipe(parallel=ParallelConfig(tp=2, dp=3))


def write_policy(directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "inner" / "a.distcp").write_bytes(b"0123456789")
    (directory / "common.pt").write_bytes(b"01234")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep_last=2)


@pytest.fixture
def model(tmp_path: Path) -> BaseModel:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "tokenizer.json").write_text("tokens")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights stay where they are")
    return BaseModel(tmp_path / "model", FINGERPRINT)


@pytest.fixture
def save(store: CheckpointStore, model: BaseModel) -> Save:
    def save(step: int, sampler: SamplerState = SAMPLER, write: Callable[[Path], None] = write_policy) -> Path:
        return store.save(step, RECIPE, model, sampler, write)

    return save


def test_what_was_saved_is_read_back(store: CheckpointStore, save: Save) -> None:
    assert store.latest() is None
    path = save(20)
    assert path.name == "step_000020" and store.latest() == path
    manifest = read_manifest(path)
    assert (manifest.step, manifest.weight_version, manifest.model, manifest.sampler) == (20, 20, FINGERPRINT, SAMPLER)
    assert manifest.files == {"common.pt": 5, "config.json": 2, "inner/a.distcp": 10, "tokenizer.json": 6}
    assert Recipe.model_validate(manifest.recipe) == RECIPE
    assert manifest.packages["megatron-core"]


def test_the_layout_is_compared_whole_but_for_what_is_sent_beside(save: Save) -> None:
    manifest = read_manifest(save(1))
    assert manifest.same_layout(RECIPE.parallel)
    assert manifest.same_layout(RECIPE.parallel.model_copy(update={"overlap": OverlapConfig(gradients=True)}))
    earlier = {name: manifest.layout[name] for name in ("tp", "pp", "dp", "vpp", "sequence_parallel")}
    assert replace(manifest, layout=earlier | {"overlap": True}).same_layout(RECIPE.parallel)
    for other in ({"tp": 2}, {"tp": 3, "dp": 2}, {"tp": 2, "dp": 3, "sequence_parallel": True}):
        assert not manifest.same_layout(ParallelConfig(**other))


def test_the_policy_is_written_out_of_sight(store: CheckpointStore, save: Save, tmp_path: Path) -> None:
    def look(directory: Path) -> None:
        assert directory.is_absolute() and not any(directory.iterdir())
        assert store.latest() is None
        assert not list((tmp_path / "checkpoints").glob("step_*"))
        write_policy(directory)

    save(1, write=look)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]


def test_an_interruption_while_writing_leaves_the_last_good_one(
    store: CheckpointStore, save: Save, tmp_path: Path
) -> None:
    good = save(10)
    before = read_manifest(good)

    def interrupted(directory: Path) -> None:
        write_policy(directory)
        raise KeyboardInterrupt

    for step in (10, 20):
        with pytest.raises(KeyboardInterrupt):
            save(step, write=interrupted)
        assert store.latest() == good
        assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_000010"]
        assert read_manifest(good) == before
    assert save(20) == store.latest(), "what it left behind is in nobody's way"
    assert read_manifest(store.latest()).files == before.files


def test_a_disk_that_does_not_take_it_is_named_and_nothing_is_left(
    store: CheckpointStore, save: Save, tmp_path: Path
) -> None:
    good = save(10)

    def broken(directory: Path) -> None:
        write_policy(directory)
        raise OSError(errno.EIO, "Input/output error", str(directory))

    with pytest.raises(CheckpointNotWritten, match="Input/output error.*policy"):
        save(20, write=broken)
    assert list((tmp_path / "checkpoints").iterdir()) == [good] and store.latest() == good


def test_a_critics_model_is_remembered_and_older_checkpoints_have_none(
    store: CheckpointStore, model: BaseModel, save: Save
) -> None:
    path = save(10)
    content = json.loads((path / MANIFEST).read_text())
    del content["critic"]
    (path / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(path).critic is None
    judged = replace(model, critic="fedcba9876543210")
    assert read_manifest(store.save(20, RECIPE, judged, SAMPLER, write_policy)).critic == "fedcba9876543210"


def test_a_directory_without_a_manifest_is_no_checkpoint(store: CheckpointStore, save: Save, tmp_path: Path) -> None:
    good = save(10)
    (tmp_path / "checkpoints" / "step_000030" / POLICY).mkdir(parents=True)
    assert store.latest() == good


def test_older_ones_go_only_beyond_keep_last(save: Save, tmp_path: Path) -> None:
    for step in (5, 10, 999_999):
        save(step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000010", "step_999999"]


def test_saving_a_step_again_replaces_it(save: Save) -> None:
    save(10)
    again = save(10, SAMPLER | {"position": 6})
    assert read_manifest(again).sampler["position"] == 6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / MANIFEST).unlink(), f"has no {MANIFEST}"),
        (lambda path: (path / MANIFEST).write_text('{"format": 1, "st'), f"{MANIFEST} is damaged"),
        (lambda path: (path / MANIFEST).write_text("[]"), f"{MANIFEST} is damaged"),
        (lambda path: (path / MANIFEST).write_text('{"format": 1}'), f"{MANIFEST} is damaged .*files, layout"),
        (lambda path: (path / POLICY / "common.pt").unlink(), r"common\.pt has 0 of 5 bytes"),
        (lambda path: (path / POLICY / "inner" / "a.distcp").write_bytes(b"0123"), r"a\.distcp has 4 of 10 bytes"),
    ],
    ids=["no manifest", "half a manifest", "no object", "no keys", "no file", "half a file"],
)
def test_damage_is_refused_by_the_name_of_the_file(save: Save, damage: object, message: str) -> None:
    path = save(10)
    damage(path)
    with pytest.raises(ConfigError, match=message) as error:
        read_manifest(path)
    assert "step_000010" in str(error.value)


def test_another_format_is_refused(save: Save) -> None:
    path = save(10)
    content = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ConfigError, match="format 2 is not 1"):
        read_manifest(path)

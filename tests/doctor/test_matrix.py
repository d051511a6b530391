"""One table of versions: what is installed by it, and what it says of torch's build."""

from pathlib import Path

import pytest

from megatron_cgrpo.doctor.matrix import PACKAGES, TORCH_BUILDS, torch_build

ROOT = Path(__file__).parents[2]
PINS = dict(
    line.strip().split("==")
    for line in (ROOT / "tools/environment/constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_matrix_has_the_pins_of_the_environment(package) -> None:
    assert package.version == PINS[package.name]


def test_the_pinned_torch_has_its_build() -> None:
    assert PINS["torch"] in TORCH_BUILDS
    assert torch_build() is TORCH_BUILDS[PINS["torch"]]


def test_the_docs_have_the_same_matrix() -> None:
    text = (ROOT / "docs/doctor.md").read_text()
    for package in PACKAGES:
        assert f"| {package.name} | {package.version} |" in text
    build = torch_build()
    assert f"| CUDA | {build.cuda} |" in text and f"| NCCL | {build.nccl} |" in text
    assert f"| driver | {build.driver} or newer |" in text

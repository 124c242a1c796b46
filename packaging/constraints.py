"""Writes constraints.txt: the versions of all dependencies that the tests last ran with, without an index.

`pip install --constraint constraints.txt ovms-plugin` installs those. They come from uv.lock:
delete it to take the newest versions, run the tests, then this.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# Versions with which the tests of ovms-plugin pass; made by packaging/constraints.py.
# pip install --constraint constraints.txt ovms-plugin
"""


def main() -> None:
    """Write the file."""
    command = [
        str(Path(sys.executable).with_name("uv")), "export", "--quiet", "--all-packages", "--all-extras", "--no-dev",
        "--no-hashes", "--no-annotate", "--no-header", "--no-emit-workspace",
    ]  # fmt: skip
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (ROOT / "constraints.txt").write_text(HEADER + text, "utf-8")


if __name__ == "__main__":
    main()

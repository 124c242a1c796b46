"""Builds a release into dist/: wheels, sdists, their digests, an SBOM and the changelog's section. Uploads nothing.

`python3 dev.py release` runs this. Two builds of one commit are bit-identical: the times in archives are the commit's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
BIN = Path(sys.executable).parent


def main() -> None:
    """Build, check and describe a release."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    shutil.rmtree(DIST, ignore_errors=True)
    epoch = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    run("uv", "build", "--all-packages", "--quiet", "--out-dir", str(DIST), SOURCE_DATE_EPOCH=epoch)
    archives = sorted(each for each in DIST.iterdir() if each.suffix in (".whl", ".gz"))
    run("twine", "check", "--strict", *map(str, archives))
    # The distribution that names all others has no modules of its own.
    wheels = [each for each in archives if each.suffix == ".whl"]
    run("check-wheel-contents", "--ignore", "W007,W008", *map(str, wheels))
    (DIST / "SHA256SUMS").write_text("".join(f"{digest(each)}  {each.name}\n" for each in archives))
    sbom = DIST / f"ovms-plugin-{version}.cdx.json"
    run("cyclonedx-py", "environment", "--output-reproducible", "--of", "JSON", "-o", str(sbom), sys.executable)
    (DIST / "CHANGES.md").write_text(changes(version), "utf-8")
    print(f"{len(archives)} archives of version {version} are in {DIST.name}/.")


def run(program: str, *words: str, **environment: str) -> None:
    """Run a program of this environment; its failure ends this one."""
    done = subprocess.run([BIN / program, *words], cwd=ROOT, env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes(version: str) -> str:
    """Return the section of a version in CHANGELOG.md."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(version)}\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        sys.exit(f"CHANGELOG.md has no section {version}; write one first.")
    return found[0]


if __name__ == "__main__":
    main()

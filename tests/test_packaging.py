"""What is shipped: every wheel has its licence, its README and its place in one version."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def metadata() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metadata", ROOT / "packaging" / "metadata.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_all_distributions_share_is_written_by_one_command(metadata: ModuleType) -> None:
    differing = [path for path, text in metadata.wanted().items() if not path.exists() or path.read_text() != text]
    assert differing == [], "run `python3 dev.py make`"


def test_the_distribution_named_like_the_command_installs_it_without_openvino() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ovms-plugin": "ovms_cli.__main__:main"}
    lean = {each.split(">")[0] for each in project["dependencies"] if ";" not in each}
    assert not {"ovms-embedded", "ovms-platform-portable", "ovms-platform-macos"} & lean
    assert any(each.startswith("ovms-embedded") for each in project["optional-dependencies"]["embedded"])


def build(folder: Path, *words: str) -> list[Path]:
    """Build wheels with the times of 2026 in them."""
    command = [str(Path(sys.executable).with_name("uv")), "build", "--wheel", "--quiet", "--out-dir", str(folder)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1767225600"}
    subprocess.run([*command, *words], cwd=ROOT, env=environment, check=True, capture_output=True)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel of every distribution."""
    return build(tmp_path_factory.mktemp("wheels"), "--all-packages")


@pytest.mark.timeout(240)
def test_every_wheel_carries_its_licence_and_describes_itself(metadata: ModuleType, wheels: list[Path]) -> None:
    assert len(wheels) == len(metadata.projects())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            [described] = [each for each in names if each.endswith(".dist-info/METADATA")]
            text = archive.read(described).decode()
        assert any(each.endswith(".dist-info/licenses/LICENSE") for each in names), wheel.name
        head, _, body = text.partition("\n\n")
        for line in (f"Version: {version}", "Author: ", "Keywords: ", "Classifier: ", "License-Expression: Apache-2.0"):
            assert f"\n{line}" in head, f"{wheel.name} has no {line}"
        assert body.strip().startswith("# "), f"{wheel.name} has no long description"
        ours = [each for each in head.splitlines() if each.startswith("Requires-Dist: ovms-")]
        assert all("<0.3" in each and ">=0.2" in each for each in ours)
        packages = {
            each.partition("/")[0] for each in names if each.count("/") and not re.search(r"\.(dist-info|data)/", each)
        }
        assert all(f"{each}/py.typed" in names for each in packages), f"{wheel.name} does not say that it has types"


def test_two_builds_are_the_same_to_the_bit(wheels: list[Path], tmp_path: Path) -> None:
    [again] = build(tmp_path, "--package", "ovms-kernel")
    [first] = [each for each in wheels if each.name == again.name]
    assert again.read_bytes() == first.read_bytes()


def test_the_constraints_know_every_dependency_and_fit_its_bounds(metadata: ModuleType) -> None:
    pinned: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert "://" not in line, "an index or a file of one machine"
            name, _, version = line.partition(" ;")[0].partition("==")
            pinned.setdefault(name, set()).add(version)
    for path in metadata.projects():
        project = tomllib.loads(path.read_text())["project"]
        for text in chain(project.get("dependencies", []), *project.get("optional-dependencies", {}).values()):
            wanted = Requirement(text)
            if not wanted.name.startswith("ovms-"):
                versions = pinned.get(canonicalize_name(wanted.name), set())
                assert any(wanted.specifier.contains(each) for each in versions), f"{text} of {project['name']}"

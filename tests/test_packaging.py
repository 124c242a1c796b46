"""What is shipped: every wheel has its licence, its README and its place in one version."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

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


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    uv = Path(sys.executable).with_name("uv")
    for project in ("kernel", "extensions/cli", "extensions/services/chat", "."):
        words = [str(uv), "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT / project)]
        subprocess.run(words, check=True, capture_output=True)
    return sorted(folder.glob("*.whl"))


def test_a_wheel_carries_its_licence_and_describes_itself(wheels: list[Path]) -> None:
    assert len(wheels) == 4
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            [described] = [each for each in names if each.endswith(".dist-info/METADATA")]
            text = archive.read(described).decode()
        assert any(each.endswith(".dist-info/licenses/LICENSE") for each in names), wheel.name
        head, _, body = text.partition("\n\n")
        assert f"\nVersion: {version}" in head
        assert body.strip().startswith("# "), f"{wheel.name} has no long description"
        ours = [each for each in head.splitlines() if each.startswith("Requires-Dist: ovms-")]
        assert all("<0.3" in each and ">=0.2" in each for each in ours)

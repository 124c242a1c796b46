"""What docs/compatibility.md promises to extensions: those made for the previous release, and what they may use."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from ovms_kernel.compose import compose_kernel
from ovms_kernel.drivers import DRIVER_PROTOCOLS
from ovms_kernel.settings import read_settings
from tests import scripts
from tests.installing import install

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAM = str(Path(sys.executable).with_name("ovms-plugin"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the extensions that were written for the previous release, installed as they are."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(HERE / "acme_0_1", tmp_path_factory.mktemp("source") / "acme")
    install(source, target=folder)
    return folder


def run(site: Path, data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(site), "OVMS_PLUGIN_DATA_DIR": str(data), "OVMS_PLUGIN_PLATFORM": "portable"
    }  # fmt: skip
    return subprocess.run([PROGRAM, *words], env=environment, capture_output=True, text=True, check=True, timeout=60)


def test_extensions_made_for_the_previous_release_are_loaded(site: Path, tmp_path: Path) -> None:
    found = json.loads(run(site, tmp_path, "extensions", "--json").stdout)
    states = {f"{each['kind']}.{each['name']}": each for each in found if each["distribution"] == "acme-0-1"}
    broken = states.pop("dialects.acme")
    assert (broken["state"], broken["cause"].rpartition(": ")[2]) == ("broken", "it lacks error")
    assert {name: each["state"] for name, each in states.items()} == {
        "services.shout": "loaded",
        "platforms.acme": "loaded",
        "graphs.captions": "loaded",
        "hubs.shelf": "loaded",
        "commands.count": "loaded",
        "observers.diary": "loaded",
        "faces.silent": "loaded",
    }


async def test_they_work_as_they_did(site: Path, tmp_path: Path, fixtures: Path, inference: None) -> None:
    data = tmp_path / "data"
    async with compose_kernel(read_settings({}, data_dir=data, platform="portable")) as kernel:
        await kernel.install_engine()
        await kernel.import_model(fixtures / "text_generation", "tiny/chat")
    done = run(site, data, "call", "shout", '{"text": "hello", "max_tokens": 4}', "--debug")
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
    assert "shout: 200 after " in done.stderr, "the observer heard of it"
    assert run(site, data, "count").stdout == "1\n"


@pytest.fixture(scope="module")
def api() -> ModuleType:
    return scripts.packaging("api")


def test_what_left_the_api_since_the_previous_release_stands_in_the_changelog(api: ModuleType) -> None:
    [kept] = HERE.glob("api-*.json")
    version = kept.stem.removeprefix("api-")
    before, now = json.loads(kept.read_text()), api.found()
    gone = {short(name) for name in before if name not in now}
    gone |= {short(name, each) for name in before if name in now for each in {*before[name]} - {*now[name]}}
    # A member more that an extension has to have breaks it as well.
    protocols = {each.__name__ for each in DRIVER_PROTOCOLS.values()}
    demands = {
        short(name, each)
        for name in before
        if name.startswith("api.") and name.rpartition(".")[2] in protocols and name in now
        for each in {*now[name]} - {*before[name]}
        if "(" not in each
    }
    current = api_version()
    if version.rpartition(".")[0] == current.rpartition(".")[0]:
        assert not gone | demands, f"{current} has to have all that {version} has"
    section = (ROOT / "CHANGELOG.md").read_text("utf-8").partition("\n## 0.1.0")[0]
    assert not {each for each in gone | demands if f"`{each}`" not in section}, "CHANGELOG.md does not name these"
    assert len(before) > 200


def short(name: str, member: str = "") -> str:
    """Return how the changelog names it: ``services.need``, ``services.need(fields)``, ``Engine.post(path)``."""
    module, _, last = name.removeprefix("api.").rpartition(".")
    if not member or member.startswith("("):
        return f"{module}.{last}{member}"
    return f"{last}.{member}"


def api_version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])

"""What is shipped: every wheel has its licence, its README and its place in one version, and is enough by itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from compileall import compile_dir
from importlib.metadata import Distribution, distributions
from importlib.util import cache_from_source
from itertools import chain
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import scripts
from tests.installing import UV, install

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def metadata() -> ModuleType:
    return scripts.packaging("metadata")


def test_what_all_distributions_share_is_written_by_one_command(metadata: ModuleType) -> None:
    differing = [path for path, text in metadata.wanted().items() if not path.exists() or path.read_text() != text]
    assert differing == [], "run `python3 dev.py make`"


def test_the_distribution_named_like_the_command_installs_it_without_openvino() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ovms-plugin": "ovms_cli.__main__:main"}
    lean = {each.split(">")[0] for each in project["dependencies"] if ";" not in each}
    assert not {"ovms-embedded", "ovms-platform-portable", "ovms-platform-macos"} & lean
    assert any(each.startswith("ovms-embedded") for each in project["optional-dependencies"]["embedded"])


BUILD = """
import os, sys
from hatchling.build import build_wheel
folder, *projects = sys.argv[1:]
for each in projects:
    os.chdir(each)
    build_wheel(folder)
"""


def build(folder: Path, *projects: Path) -> list[Path]:
    """Build wheels with the times of 2026 in them: in one process, as an isolated one for each takes two minutes."""
    command = [sys.executable, "-c", BUILD, str(folder), *(str(each.parent) for each in projects)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1767225600"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheels(metadata: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel of every distribution."""
    return build(tmp_path_factory.mktemp("wheels"), *metadata.projects())


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
    [again] = build(tmp_path, ROOT / "kernel" / "pyproject.toml")
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


PLATFORMS = sorted(each.parent.name for each in ROOT.glob("extensions/platforms/*/pyproject.toml"))
SERVICES = sorted(each.parent.name.replace("_", "-") for each in ROOT.glob("extensions/services/*/pyproject.toml"))
EMBEDDED = {"portable", "macos"}
"""Platforms that bring the embedded engine, and OpenVINO with it."""
Environment = Callable[..., str]


@pytest.fixture(scope="module")
def available(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Distribution]:
    """What can be installed, by name: these wheels, as an installer leaves them, and what else is installed here."""
    folder = tmp_path_factory.mktemp("installed")
    install(*wheels, target=folder)
    compile_dir(folder, quiet=1)
    found = distributions(path=[str(folder), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return {canonicalize_name(each.name): each for each in reversed([*found])}


def needed(available: dict[str, Distribution], *names: str) -> list[Distribution]:
    """Return distributions and what they declare to need, as an installer finds it."""
    found: dict[str, Distribution] = {}
    more = {(Requirement(each), "") for each in names}
    seen = set[tuple[Requirement, str]]()
    while more:
        seen |= more
        wanted, more = more, set()
        for each, extra in wanted:
            if each.marker and not each.marker.evaluate({"extra": extra}):
                continue
            distribution = found[canonicalize_name(each.name)] = available[canonicalize_name(each.name)]
            assert each.specifier.contains(distribution.version, prereleases=True), each
            for text in distribution.requires or []:
                more |= {(Requirement(text), one) for one in ("", *each.extras)} - seen
    return list(found.values())


def put(distribution: Distribution, site: Path) -> None:
    """Install a distribution with links to its files, and to what Python has compiled of them."""
    source = Path(str(distribution.locate_file("")))
    for each in distribution.files or []:
        if each.parts[0] == ".." or "__pycache__" in each.parts:
            continue
        to = site / each
        to.parent.mkdir(parents=True, exist_ok=True)
        link(source / each, to)
        if each.suffix == ".py":
            compiled = Path(cache_from_source(str(source / each)))
            if compiled.exists():
                (to.parent / "__pycache__").mkdir(exist_ok=True)
                link(compiled, to.parent / "__pycache__" / compiled.name)


def link(file: Path, to: Path) -> None:
    try:
        to.hardlink_to(file)
    except OSError:  # another file system
        shutil.copy2(file, to)


@pytest.fixture
def environment(available: dict[str, Distribution], tmp_path: Path) -> Environment:
    """Make a new environment of these distributions and what they declare to need; return its Python."""

    def make(*names: str) -> str:
        venv = tmp_path / "venv"
        subprocess.run([UV, "venv", "--python", sys.executable, str(venv)], check=True, capture_output=True)
        [site] = venv.glob("**/site-packages")
        for each in needed(available, *names):
            put(each, site)
        return str(venv / Path(sys.executable).parent.name / Path(sys.executable).name)

    return make


def run(python: str, script: str, *words: str) -> str:
    """Run a script with nothing of this environment, and return the last line that it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OVMS_", "PYTHON", "AOG"))}
    command = [python, "-c", script, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


LOAD = """
import json
from importlib.metadata import distributions, entry_points
points = entry_points()
groups = [each for each in points.groups if each.startswith("ovms.")]
found = [each for group in groups for each in points.select(group=group)]
for each in found:
    each.load()
names = sorted(f"{each.group.removeprefix('ovms.')}.{each.name}" for each in found)
print(json.dumps([names, [each.name for each in distributions()]]))
"""


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_platform_is_enough_for_all_services(environment: Environment, platform: str) -> None:
    python = environment(f"ovms-platform-{platform}", *(f"ovms-service-{each}" for each in SERVICES))
    loaded, installed = json.loads(run(python, LOAD))
    assert loaded == [f"platforms.{platform}", *(f"services.{each}" for each in SERVICES)]
    unwanted = {"typer", "rich", "ovms-cli"} | (set() if platform in EMBEDDED else {"openvino", "starlette"})
    assert not unwanted & set(installed)


@pytest.mark.parametrize(("service", "platform"), list(zip(SERVICES, PLATFORMS, strict=True)))
def test_a_service_is_enough_by_itself_on_a_platform(environment: Environment, service: str, platform: str) -> None:
    if platform in EMBEDDED:
        platform = "remote"  # the embedded engine would bring libraries that the service forgot
    loaded, _ = json.loads(run(environment(f"ovms-platform-{platform}", f"ovms-service-{service}"), LOAD))
    assert loaded == [f"platforms.{platform}", f"services.{service}"]


ANSWER = """
import json, sys
import anyio
from pathlib import Path
from ovms_kernel.api.faces import Request
from ovms_kernel.api.programs import compose_kernel, read_settings

async def main():
    data, model, service, asked = sys.argv[1:]
    async with compose_kernel(read_settings({}, data_dir=data, platform="portable")) as kernel:
        await kernel.install_engine()
        await kernel.import_model(Path(model), "tiny/model")
        if service:
            answer = await kernel.invoke(service, Request(fields=json.loads(asked)))
            print(answer.body.decode())
        else:
            print("imported")
anyio.run(main)
"""
AOG = """
import asyncio, os, sys
from ovms_face_aog.client import PluginHost, plugin_command

async def main():
    where = {"OVMS_PLUGIN_DATA_DIR": sys.argv[1], "OVMS_PLUGIN_PLATFORM": "portable"}
    async with PluginHost(plugin_command(), os.environ | where) as host:
        asked = b'{"model": "tiny/model", "input": ["a sentence"]}'
        answer = await host.call("InvokeService", service_name="embed", request_data=asked)
        print(answer.response_data.decode())
asyncio.run(main())
"""


@pytest.mark.needs_inference
def test_a_program_of_your_own_gets_an_answer(environment: Environment, fixtures: Path, tmp_path: Path) -> None:
    python = environment("ovms-platform-portable", "ovms-service-generate", "ovms-graph-text-generation")
    model, asked = str(fixtures / "text_generation"), {"prompt": "OpenVINO is", "max_tokens": 4}
    answer = json.loads(run(python, ANSWER, str(tmp_path / "data"), model, "generate", json.dumps(asked)))
    assert answer["choices"][0]["text"]


@pytest.mark.needs_inference
def test_aog_gets_an_answer_without_the_command_line(environment: Environment, fixtures: Path, tmp_path: Path) -> None:
    python = environment("ovms-face-aog", "ovms-platform-portable", "ovms-service-embed", "ovms-graph-embeddings")
    assert run(python, ANSWER, str(tmp_path / "data"), str(fixtures / "embeddings"), "", "") == "imported"
    assert len(json.loads(run(python, AOG, str(tmp_path / "data")))["data"][0]["embedding"]) == 64


@pytest.mark.needs_inference
def test_http_gets_an_answer_without_the_command_line(environment: Environment, fixtures: Path, tmp_path: Path) -> None:
    python = environment("ovms-face-http", "ovms-platform-portable", "ovms-service-rerank", "ovms-graph-rerank")
    data = tmp_path / "data"
    assert run(python, ANSWER, str(data), str(fixtures / "rerank"), "", "") == "imported"
    wanted = {"DATA_DIR": str(data), "PLATFORM": "portable", "FACES__HTTP__PORT": "0", "FACES__HTTP__KEYS": "none"}
    set_ = os.environ | {f"OVMS_PLUGIN_{name}": value for name, value in wanted.items()}
    with subprocess.Popen([python, "-m", "ovms_face_http"], env=set_, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            [url] = next(filter(None, (re.findall(r"http://127\.0\.0\.1:\d+", line) for line in process.stderr)))
            asked = {"model": "tiny/model", "query": "a cat", "documents": ["a cat", "a house"]}
            answer = httpx.post(f"{url}/v1/rerank", json=asked, timeout=60, trust_env=False)
            assert len(answer.raise_for_status().json()["results"]) == 2
        finally:
            process.terminate()
            process.communicate(timeout=30)

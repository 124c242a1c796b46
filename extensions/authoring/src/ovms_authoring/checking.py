"""The contracts of the kit over somebody's distribution, and its own tests, as one run of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio.to_thread

from ovms_kernel.api.commands import BadRequest, PreconditionFailed, say

CONTRACTS = {
    "services": "ServiceContract",
    "faces": "FaceContract",
    "dialects": "DialectContract",
    "commands": "CommandsContract",
    "observers": "ObserverContract",
}
"""Contracts that need nothing but the class."""
WITH_SAMPLES = {
    "graphs": ("GraphContract", "the files of a model of its type"),
    "platforms": ("PlatformContract", "a host that it is for"),
    "hubs": ("HubContract", "a model that it offers"),
}
"""Contracts that need a sample, which only the distribution's own tests have."""


async def check(folder: Path) -> int:
    """Run them and return the exit code: 0 if all is well, 1 if something is not.

    :raises BadRequest: the folder has no distribution with extensions.
    :raises PreconditionFailed: pytest is not installed.
    """
    return await anyio.to_thread.run_sync(_check, folder, abandon_on_cancel=True)


def _check(path: Path) -> int:
    path = path.resolve()
    offered = _offered(path)
    if find_spec("pytest") is None:
        raise PreconditionFailed("The contracts are run by pytest; run `pip install 'ovms-kernel[testing]'` first.")
    tests = sorted(each for each in path.rglob("test_*.py") if ".venv" not in each.parts)
    missing = _missing_contracts(offered, "\n".join(each.read_text("utf-8") for each in tests))
    for each in missing:
        say(each)
    with tempfile.TemporaryDirectory(prefix="ovms-check-") as made:
        folder = Path(made)
        (folder / "test_contracts.py").write_text(_module(offered), "utf-8")
        (folder / "conftest.py").write_text(CONFTEST, "utf-8")
        (folder / "pytest.ini").write_text("[pytest]\nanyio_mode = auto\npython_classes = Test*\n", "utf-8")
        paths = os.pathsep.join(str(each) for each in (path / "src", path) if each.is_dir())
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
        command += ["-c", str(folder / "pytest.ini"), str(folder), *map(str, tests)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
    return 1 if done.returncode or missing else 0


CONFTEST = "import pytest\n\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"


def _offered(path: Path) -> dict[str, dict[str, str]]:
    try:
        project: dict[str, Any] = tomllib.loads((path / "pyproject.toml").read_text("utf-8"))["project"]
    except FileNotFoundError as error:
        raise BadRequest(f"{path} has no pyproject.toml; name the folder of a distribution.") from error
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise BadRequest(f"{path / 'pyproject.toml'} describes no project: {error}.") from error
    groups = project.get("entry-points", {})
    offered = {group.removeprefix("ovms."): dict(each) for group, each in groups.items() if group.startswith("ovms.")}
    if not offered:
        raise BadRequest(f"{path / 'pyproject.toml'} has no entry points of ovms.services or another kind.")
    if unknown := offered.keys() - CONTRACTS.keys() - WITH_SAMPLES.keys():
        known = ", ".join(f"ovms.{each}" for each in (*CONTRACTS, *WITH_SAMPLES))
        raise BadRequest(f"ovms.{min(unknown)} is not a kind of extension; the kinds are {known}.")
    return offered


def _module(offered: dict[str, dict[str, str]]) -> str:
    lines = ["from importlib import import_module", "from ovms_kernel.testing import contract", ""]
    for kind, names in offered.items():
        for name, target in names.items():
            module, _, attribute = target.partition(" ")[0].partition(":")
            title = f"Test_{kind}_{name.replace('-', '_')}"
            driver = f"import_module({module!r}).{attribute}"
            lines += [
                f"class {title}_loads(contract.DriverContract):",
                f"    kind, name, driver = {kind!r}, {name!r}, {driver}",
            ]
            if base := CONTRACTS.get(kind):
                lines += [f"class {title}(contract.{base}):", f"    driver = {driver}"]
    return "\n".join(lines) + "\n"


def _missing_contracts(offered: dict[str, dict[str, str]], tests: str) -> list[str]:
    return [
        f"No test here inherits {contract}; write one for {kind}.{name}, it needs {sample}."
        for kind, names in offered.items()
        if kind in WITH_SAMPLES
        for name in names
        for contract, sample in [WITH_SAMPLES[kind]]
        if contract not in tests
    ]

"""From an archive in the layout of OVMS's to an answer, with the platform drivers and the embedded engine for real."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ovms_graph_text_generation import TextGeneration
from ovms_kernel.compose import compose_kernel
from ovms_kernel.drivers import Platform
from ovms_kernel.engine.ovms import NEWEST
from ovms_kernel.errors import EngineFailed
from ovms_kernel.extensions import Extensions
from ovms_kernel.kernel import Kernel
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.values import Host, Release, Request
from ovms_platform_deepin import Deepin
from ovms_platform_redhat import RedHat
from ovms_platform_ubuntu2204 import Ubuntu2204
from ovms_platform_ubuntu2404 import Ubuntu2404
from ovms_platform_ubuntu2604 import Ubuntu2604
from ovms_service_chat import Chat
from tests.archives import EMBEDDED, linux_archive

pytestmark = pytest.mark.needs_posix  # the archives are Linux's: links, and a shell script as the engine

QUESTION = b'{"messages": [{"role": "user", "content": "What is OpenVINO?"}], "temperature": 0}'
ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
MODEL = "tiny/text"
UBUNTU2404 = Host("linux", "x86_64", "ubuntu", "24.04", memory=16 << 30, libpython=("3.12",))
HOSTS = [
    (Ubuntu2404, UBUNTU2404, "ubuntu24", "on"),
    (Ubuntu2204, replace(UBUNTU2404, version="22.04"), "ubuntu22", "off"),
    (Ubuntu2604, replace(UBUNTU2404, version="26.04"), "ubuntu24", "on"),
    (RedHat, replace(UBUNTU2404, distribution="rhel", version="9.6"), "redhat", "on"),
    (Deepin, replace(UBUNTU2404, distribution="deepin", version="23"), "ubuntu22", "off"),
]


def offline(driver: Any) -> Platform:
    """Return a platform that looks for archives on this machine only."""

    class Offline(driver):
        def release(self, host: Host, version: str) -> Release:
            return replace(super().release(host, version), mirrors=(), asset_list="")

    platform: Platform = Offline()
    return platform


async def ask(kernel: Kernel) -> str:
    answer = json.loads((await kernel.invoke("chat", Request(QUESTION))).body)
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(("driver", "host", "system", "python"), HOSTS)
async def test_an_archive_is_installed_started_upgraded_and_rolled_back(
    tmp_path: Path, fixtures: Path, driver: Any, host: Host, system: str, python: str
) -> None:
    mirror = tmp_path / "archives with ünicode"
    mirror.mkdir()

    def pack(version: str, **more: Any) -> None:
        name = f"ovms_{system}_{version}_python_{python}.tar.gz"
        linux_archive(mirror / name, version, python=python == "on", **({"engine": EMBEDDED} | more))

    for version in (NEWEST, "2026.4.2"):
        pack(version)
    pack("2026.4.3", engine="-c 'import sys; sys.exit(3)'" if driver is Ubuntu2404 else "no-such-program")
    extensions = Extensions(
        services={"chat": configured(Chat)},
        platforms={system: offline(driver)},
        graphs={"text_generation": TextGeneration({})},
    )
    settings = read_settings({}, data_dir=tmp_path / "data with ünicode", engine_mirrors=(str(mirror),))
    async with compose_kernel(settings, host=host, extensions=extensions) as kernel:
        assert (await kernel.install_engine()).version == NEWEST
        await kernel.import_model(fixtures / "text_generation", MODEL)
        assert await ask(kernel) == ANSWER
        if driver is not Ubuntu2404:
            return  # the rest does not depend on the system
        assert (await kernel.upgrade_engine("2026.4.2")).version == "2026.4.2"
        assert await ask(kernel) == ANSWER
        assert (await kernel.engine()).version == "2026.4.2"
        with pytest.raises(EngineFailed):
            await kernel.upgrade_engine("2026.4.3")
        assert (await kernel.engine()).version == "2026.4.2"
        assert await ask(kernel) == ANSWER
        await kernel.installations.activate(kernel.installations.find(NEWEST))
        await kernel.stop_engine()
        assert (await kernel.engine()).version == NEWEST

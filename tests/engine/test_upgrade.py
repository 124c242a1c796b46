"""To another version and, if that is not healthy, back; and what happens if the platform was a guess."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from msgspec import structs
from msgspec.structs import replace

from ovms_graph_text_generation import TextGeneration
from ovms_kernel.compose import compose_kernel
from ovms_kernel.engine import archives, launch
from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, NotSupported, PreconditionFailed
from ovms_kernel.extensions import Extensions
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.kernel import Kernel
from ovms_kernel.processes import start_time
from ovms_kernel.settings import Settings, read_settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.platform import MisbehavingPlatform
from ovms_kernel.values import EngineExit, EngineInfo, Host, Installation, Release
from tests.archives import ArchiveServer, PackedPlatform, linux_archive
from tests.processes import ENDED_BY_FORCE

ROOT = Path(__file__).parents[2]
HOST = Host("linux", "x86_64", "ubuntu", "24.04", memory=16 << 30)
MODEL = "tiny/text"

pytestmark = pytest.mark.needs_posix  # the archives are Linux's: links, and a shell script as the engine


class Watcher:
    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.failed: Callable[[], None] = lambda: None

    @hookimpl
    async def ovms_installed(self, installation: Installation) -> None:
        self.told.append(("installed", installation.version))

    @hookimpl
    async def ovms_rolled_back(self, installation: Installation, cause: str) -> None:
        self.told.append(("rolled back", installation.version))

    @hookimpl
    async def ovms_engine_exited(self, exit: EngineExit) -> None:  # noqa: A002
        if not exit.expected:
            self.failed()

    @hookimpl
    async def ovms_engine_ready(self, engine: EngineInfo) -> None:
        self.told.append(("ready", engine.version))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setattr(archives, "BACK_OFF", 0.01)
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ArchiveServer(folder) as server:
        pack(server, "2026.3.0")
        yield server


def pack(server: ArchiveServer, version: str, how: str = "") -> None:
    linux_archive(server.folder / f"ovms_ubuntu24_{version}_python_on.tar.gz", version, how=how)


def compose(settings: Settings, watcher: Watcher, **platforms: object) -> Kernel:
    extensions: Any = Extensions(
        platforms=platforms,  # type: ignore[arg-type]
        graphs={"text_generation": TextGeneration({})},
        observers={"watcher": watcher},
    )
    return compose_kernel(settings, host=HOST, extensions=extensions)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
async def kernel(settings: Settings, server: ArchiveServer, watcher: Watcher) -> AsyncIterator[Kernel]:
    async with compose(settings, watcher, packed=PackedPlatform(server.url)) as kernel:
        await kernel.install_engine()
        yield kernel


@pytest.fixture
async def serving(kernel: Kernel, fixtures: Path) -> Kernel:
    """A kernel whose engine 2026.3.0 serves a model."""
    await kernel.import_model(fixtures / "text_generation", MODEL)
    await kernel.load_model(MODEL)
    return kernel


async def test_an_upgrade_takes_the_loaded_models_along_and_a_second_one_does_nothing(
    serving: Kernel, server: ArchiveServer, watcher: Watcher
) -> None:
    pack(server, "2026.4.0")
    old = await serving.engine()
    new = await serving.upgrade_engine("2026.4.0")
    assert new.version == "2026.4.0"
    assert serving.installations.active() == new
    info = await serving.engine()
    assert info.version == "2026.4.0"
    assert info.pid != old.pid
    assert [each.id for each in await serving.running_models()] == [MODEL]
    assert watcher.told == [
        ("installed", "2026.3.0"),
        ("ready", "2026.3.0"),
        ("ready", "2026.4.0"),
        ("installed", "2026.4.0"),
    ]
    requests = len(server.requests)
    assert await serving.upgrade_engine("2026.4.0") == new
    assert (await serving.engine()).pid == info.pid
    assert len(server.requests) == requests
    # The old version is kept beside it, for `engine use`.
    assert [each.version for each in serving.installations.versions()] == ["2026.3.0", "2026.4.0"]


async def test_an_upgrade_that_nobody_asked_for_does_nothing(serving: Kernel, server: ArchiveServer) -> None:
    """AOG asks for one after every start."""
    pid, requests = (await serving.engine()).pid, len(server.requests)
    assert (await serving.upgrade_engine()).version == "2026.3.0"
    assert ((await serving.engine()).pid, len(server.requests)) == (pid, requests)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("exit=1", "The disk is made of cheese"),
        ("never-ready", "did not answer"),
        ("no-grpc", "did not answer"),
        (f"fail={MODEL}", f"could not load {MODEL}"),
    ],
)
async def test_a_version_that_is_not_healthy_is_rolled_back_with_everything(
    serving: Kernel, server: ArchiveServer, watcher: Watcher, monkeypatch: pytest.MonkeyPatch, how: str, cause: str
) -> None:
    limit = serving.settings.start_timeout
    structs.force_setattr(serving.settings, "start_timeout", 1.5)
    # The old one has all the time it needs to come back, however busy the machine is.
    watcher.failed = lambda: structs.force_setattr(serving.settings, "start_timeout", limit)
    pack(server, "2026.4.0", how)
    with pytest.raises(EngineFailed, match=rf"2026\.4\.0 did not come up healthy, so version 2026\.3\.0 .*{cause}"):
        await serving.upgrade_engine("2026.4.0")
    active = serving.installations.active()
    assert active
    assert active.version == "2026.3.0"
    assert (await serving.engine()).version == "2026.3.0"
    assert [each.id for each in await serving.running_models()] == [MODEL]
    assert watcher.told[-1] == ("rolled back", "2026.3.0")
    assert ("installed", "2026.4.0") not in watcher.told


async def test_a_version_that_cannot_be_had_or_run_touches_nothing(serving: Kernel, server: ArchiveServer) -> None:
    pid = (await serving.engine()).pid
    with pytest.raises(NotFound, match="cannot be downloaded"):
        await serving.upgrade_engine("2026.4.0")
    pack(server, "2026.4.0", "broken")
    with pytest.raises(EngineFailed, match="does not run on this system"):
        await serving.upgrade_engine("2026.4.0")
    assert (await serving.engine()).pid == pid


async def test_an_engine_that_did_not_run_is_tried_and_does_not_run_afterwards(
    kernel: Kernel, server: ArchiveServer, watcher: Watcher
) -> None:
    pack(server, "2026.4.0")
    await kernel.upgrade_engine("2026.4.0")
    assert ("ready", "2026.4.0") in watcher.told
    assert not kernel.supervisor.started
    pack(server, "2026.4.1", "exit=1")
    with pytest.raises(EngineFailed):
        await kernel.upgrade_engine("2026.4.1")
    assert not kernel.supervisor.started
    assert await kernel.engine_version() == "2026.4.0"


async def test_an_engine_that_another_process_runs_is_not_upgraded_behind_its_back(
    kernel: Kernel, server: ArchiveServer
) -> None:
    pack(server, "2026.4.0")
    theirs = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        note = launch.RunningEngine(theirs.pid, start_time(theirs.pid), 4711, "2026.3.0", 1, 2)
        launch.note_running(kernel.settings, note)
        with pytest.raises(PreconditionFailed, match="Process 4711 runs the engine"):
            await kernel.upgrade_engine("2026.4.0")
        assert [each.version for each in kernel.installations.versions()] == ["2026.3.0"]
    finally:
        theirs.kill()
        theirs.wait()
    assert (await kernel.upgrade_engine("2026.4.0")).version == "2026.4.0", "who is gone is in nobody's way"


KILLED = """
import os, sys, anyio
sys.path.insert(0, sys.argv[4])
from ovms_graph_text_generation import TextGeneration
from ovms_kernel.extensions import Extensions
from ovms_kernel.compose import compose_kernel
from ovms_kernel.kernel import Kernel
from ovms_kernel.engine.installation import Installations
from ovms_kernel.settings import read_settings
from ovms_kernel.values import Host
from tests.archives import PackedPlatform

data, url, step, _ = sys.argv[1:]
def die(*_a, **_k):
    os.kill(os.getpid(), 9)
async def main():
    extensions = Extensions(platforms={"packed": PackedPlatform(url)}, graphs={"text_generation": TextGeneration({})})
    settings = read_settings({}, data_dir=data)
    async with compose_kernel(settings, host=Host("linux", "x86_64"), extensions=extensions) as kernel:
        await kernel.load_model("tiny/text")
        if step == "install":
            kernel.installations._switch = die
            kernel.stop_engine = die
        elif step == "start":
            kernel.supervisor.ensure_ready = die
        elif step == "load":
            kernel.residency.load = die
        elif step == "switch":
            kernel.installations.activate = die
        await kernel.upgrade_engine("2026.4.0")
anyio.run(main)
"""


@pytest.mark.parametrize("step", ["install", "start", "load", "switch"])
async def test_a_plugin_that_is_killed_while_upgrading_leaves_the_old_version_in_use(
    settings: Settings, server: ArchiveServer, watcher: Watcher, fixtures: Path, step: str
) -> None:
    pack(server, "2026.4.0")
    async with compose(settings, watcher, packed=PackedPlatform(server.url)) as kernel:
        await kernel.install_engine()
        await kernel.import_model(fixtures / "text_generation", MODEL)
    command = [sys.executable, "-c", KILLED, str(settings.data_dir), server.url, step, str(ROOT)]
    done = await anyio.run_process(command, check=False)
    assert done.returncode == ENDED_BY_FORCE, done.stderr.decode()
    with anyio.fail_after(10):
        while any(str(settings.config_json) in " ".join(_command(each)) for each in psutil.process_iter()):  # noqa: ASYNC110
            await anyio.sleep(0.05)
    async with compose(settings, watcher, packed=PackedPlatform(server.url)) as kernel:
        assert await kernel.engine_version() == "2026.3.0"
        assert (await kernel.load_model(MODEL)).id == MODEL
        assert (await kernel.upgrade_engine("2026.4.0")).version == "2026.4.0"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# -- platforms that do not do -------------------------------------------------------------------------------------


def embedded() -> MisbehavingPlatform:
    """A platform that needs no download and fits any host."""
    platform = configured(MisbehavingPlatform)
    platform.matches = lambda _: 1
    return platform


HOSTILE_LINK = "ovms/lib/liba.so"


def spoil(server: ArchiveServer, how: str) -> None:
    """Make the archive one that cannot be installed."""
    path = server.folder / "ovms_ubuntu24_2026.3.0_python_on.tar.gz"
    if how == "gone":
        path.unlink()
    elif how == "refused":
        with tarfile.open(path, "w:gz") as tar:
            info = tarfile.TarInfo(HOSTILE_LINK)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    else:
        pack(server, "2026.3.0", how)


@pytest.mark.parametrize("fit", [5, 20])
@pytest.mark.parametrize("how", ["broken", "gone", "refused"])
async def test_a_platform_that_does_not_work_gives_way_to_the_next_with_a_sentence(
    tmp_path: Path, server: ArchiveServer, watcher: Watcher, caplog: pytest.LogCaptureFixture, how: str, fit: int
) -> None:
    spoil(server, how)
    settings = read_settings({}, data_dir=tmp_path / "other")
    vendor, portable = PackedPlatform(server.url, fit=fit), embedded()
    async with compose(settings, watcher, vendor=vendor, portable=portable) as kernel:
        installed = await kernel.install_engine()
        assert installed.platform == "portable"
        assert [each.platform for each in kernel.installations.read_record().skipped] == ["vendor"]
        assert "Platform vendor is skipped: " in caplog.text
        assert "Next is portable." in caplog.text
        left = [path.name for path in (tmp_path / "other/engine").rglob("*") if "2026.3.0" in path.name]
        assert left == [], "what is of no use takes no room"
        # From now on that is the platform: it is what is installed.
        assert kernel.control.choice().platform is portable
        assert (await kernel.engine()).version == installed.version
    # A version that somebody asked for does not turn into something else.
    async with compose(
        read_settings({}, data_dir=tmp_path / "third"), watcher, vendor=vendor, portable=portable
    ) as kernel:
        with pytest.raises((BadRequest, EngineFailed, NotFound)):
            await kernel.install_engine("2026.3.0")
        with pytest.raises(PreconditionFailed):
            await kernel.engine_version()


async def test_a_failed_download_is_tried_again_by_the_next_install_which_says_so(
    settings: Settings, server: ArchiveServer, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(server, "gone")
    async with compose(settings, watcher, vendor=PackedPlatform(server.url, fit=20), portable=embedded()) as kernel:
        first = await kernel.install_engine()
        assert first.platform == "portable"
        assert await kernel.install_engine() == first, "still gone, and the engine in use stays"
        pack(server, "2026.3.0")
        caplog.clear()
        assert (await kernel.install_engine()).platform == "vendor"
        assert f"Engine {first.version} of portable is in use; vendor is tried." in caplog.text
        assert kernel.installations.read_record().skipped == ()


async def test_what_was_refused_is_tried_again_only_if_asked(
    settings: Settings, server: ArchiveServer, watcher: Watcher
) -> None:
    spoil(server, "refused")
    async with compose(settings, watcher, vendor=PackedPlatform(server.url, fit=20), portable=embedded()) as kernel:
        first = await kernel.install_engine()
        (skipped,) = kernel.installations.read_record().skipped
        assert HOSTILE_LINK in skipped.cause
        requests = len(server.requests)
        assert await kernel.install_engine() == first
        assert len(server.requests) == requests, "hundreds of MB are not fetched again for nothing"
        assert kernel.installations.read_record().skipped == (skipped,)
        (server.folder / "ovms_ubuntu24_2026.3.0_python_on.tar.gz").unlink()
        pack(server, "2026.3.0")
        (settings.downloads_dir / "digests.json").unlink()
        assert (await kernel.install_engine(retry=True)).platform == "vendor"


async def test_a_platform_chosen_by_name_stays_until_another_is_asked_for(
    settings: Settings, server: ArchiveServer, watcher: Watcher
) -> None:
    async with compose(settings, watcher, vendor=PackedPlatform(server.url, fit=20), portable=embedded()) as kernel:
        assert (await kernel.install_engine(platform="portable")).platform == "portable"
        assert (await kernel.install_engine()).platform == "portable"
        assert server.requests == []
        assert (await kernel.install_engine(retry=True)).platform == "vendor"
        with pytest.raises(NotSupported, match="No platform extension named beos is loaded"):
            await kernel.install_engine(platform="beos")


async def test_where_a_known_digest_is_demanded_the_version_that_has_one_is_installed(
    settings: Settings, server: ArchiveServer, watcher: Watcher
) -> None:
    digest = linux_archive(server.folder / "ovms_ubuntu24_2026.4.0_python_on.tar.gz", "2026.4.0")

    class Vendor(PackedPlatform):
        def release(self, host: Host | None, version: str) -> Release:
            known = digest if version == "2026.4.0" else None
            return replace(super().release(host, version), verified="2026.4.0", sha256=known)

    strict = structs.replace(settings, engine_known_digest=True)
    async with compose(strict, watcher, vendor=Vendor(server.url)) as kernel:
        assert (await kernel.install_engine()).version == "2026.4.0"
        with pytest.raises(PreconditionFailed, match="engine_known_digest"):
            await kernel.install_engine("2026.3.0")


async def test_the_engine_is_told_apart_from_one_that_only_looks_like_it(kernel: Kernel) -> None:
    """GetVersion is that of the binary: what it said of itself when it was installed."""
    assert await kernel.engine_version() == "2026.3.0"
    note = json.loads((kernel.settings.versions_dir / "2026.3.0" / "installation.json").read_text())
    assert note["reported"] == "2026.3.0"
    assert os.access(kernel.settings.versions_dir / "2026.3.0/ovms/bin/ovms", os.X_OK)

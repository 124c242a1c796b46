"""Engines are fetched, verified, unpacked, tried and switched to, through everything that a network and a disk do."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ovms_kernel.engine import archives
from ovms_kernel.engine.installation import Installations
from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, PreconditionFailed, Refused, Unavailable
from ovms_kernel.fetch.transfer import Pace
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.settings import Settings, read_settings
from ovms_kernel.testing.events import EventRecorder
from ovms_kernel.values import Installation, Progress, Release, Requirement
from tests.archives import LOOK, ArchiveServer, PackedPlatform, linux_archive
from tests.processes import ENDED_BY_FORCE

ARCHIVE = "ovms_ubuntu24_2026.3.0_python_on.tar.gz"
SIZE = 3 << 20
PART = 1 << 20
"""Bytes of a range; one connection, so that the tests know which is next."""

pytestmark = pytest.mark.needs_posix  # the archives are Linux's: links, and a shell script as the engine


class Setup:
    def __init__(self, settings: Settings, server: ArchiveServer) -> None:
        self.server = server
        self.settings = settings
        self.events = EventRecorder()
        self.installations = Installations(settings, self.events)
        self.told: list[Progress] = []

    async def install(self, platform: PackedPlatform | None = None, version: str = "", **more: bool) -> Installation:
        platform = platform or PackedPlatform(self.server.url)
        release = platform.release(None, version)
        return await self.installations.install("packed", platform, release, self.told.append, **more)

    def set(self, **settings: Any) -> None:
        """Change settings, as the next process would have them."""
        self.settings = read_settings({}, data_dir=self.settings.data_dir, **settings)
        self.installations = Installations(self.settings, self.events)

    def fetched(self) -> list[str]:
        """Return the ranges of the requests for the archive."""
        return [wanted for path, wanted in self.server.requests if path == f"/{ARCHIVE}" and wanted != LOOK]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ArchiveServer(folder) as server:
        yield server


@pytest.fixture
def digest(server: ArchiveServer) -> str:
    return linux_archive(server.folder / ARCHIVE, padding=SIZE)


@pytest.fixture
def setup(settings: Settings, server: ArchiveServer, digest: str, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(archives, "BACK_OFF", 0.01)
    monkeypatch.setattr(archives, "PACE", Pace(connections=1, part_size=PART, retry_delay=0.01))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return Setup(settings, server)


async def test_a_release_is_installed_and_active_and_a_second_time_nothing_happens(setup: Setup, digest: str) -> None:
    installed = await setup.install()
    assert installed == setup.installations.active()
    assert installed.version == "2026.3.0"
    assert installed.sha256 == digest
    assert (installed.directory / "ovms/lib/libopenvino.so").is_symlink()
    assert setup.events.names() == ["ovms_before_install", "ovms_installed"]
    positions = [each.completed for each in setup.told if each.status == "downloading"]
    assert positions == sorted(positions)
    assert positions[-1] == (setup.server.folder / ARCHIVE).stat().st_size
    assert {each.status for each in setup.told} >= {"downloading", "verified", "extracting", "verifying", "success"}
    assert f"sha256:{digest}" in [each.digest for each in setup.told]
    requests = len(setup.server.requests)
    assert await setup.install() == installed
    assert len(setup.server.requests) == requests
    # Nothing but the version is left.
    left = {path.name for path in (setup.settings.data_dir / "engine").rglob("*") if "2026.3.0" not in path.parts}
    assert left == {"versions", "active", "downloads", "digests.json"}


async def test_cuts_cost_only_what_they_cut(setup: Setup, digest: str) -> None:
    setup.server.cut_after = [700_000, 0, 100_000, 100]
    assert (await setup.install()).sha256 == digest
    assert setup.fetched()[:2] == [f"bytes=0-{PART - 1}", f"bytes=700000-{PART - 1}"]
    size = (setup.server.folder / ARCHIVE).stat().st_size
    assert setup.server.sent == size + 4, "the first four bytes tell what it is"
    positions = [each.completed for each in setup.told if each.status == "downloading"]
    assert positions == sorted(positions)


async def test_a_download_goes_on_in_the_next_process(setup: Setup, digest: str) -> None:
    setup.server.cut_after = [PART, 500_000] + [0] * 10
    with pytest.raises(Unavailable, match=r"cannot be downloaded \(127\.0\.0\.1: .*engine_mirrors"):
        await setup.install()
    assert setup.installations.versions() == []
    setup.set()
    setup.server.cut_after = []
    setup.server.requests.clear()
    assert (await setup.install()).sha256 == digest
    # Without a digest named beforehand, only parts that are complete and synced are believed.
    size = (setup.server.folder / ARCHIVE).stat().st_size
    assert setup.fetched()[0] == f"bytes={PART}-{2 * PART - 1}"
    assert sum(_length(each, size) for each in setup.fetched()) == size - PART


def _length(wanted: str, size: int) -> int:
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return min(int(last) + 1, size) - int(first)


async def test_a_file_that_changed_meanwhile_is_fetched_anew(setup: Setup) -> None:
    setup.server.cut_after = [PART, 500_000] + [0] * 10
    with pytest.raises(Unavailable):
        await setup.install()
    new = linux_archive(setup.server.folder / ARCHIVE, padding=SIZE + 5)
    setup.server.cut_after = []
    assert (await setup.install()).sha256 == new
    # And where the server has no ETag to tell by, the digest at the end does.
    shutil.rmtree(setup.settings.data_dir)
    setup.server.strong = False
    setup.server.cut_after = [PART, 500_000] + [0] * 10
    with pytest.raises(Unavailable):
        await setup.install()
    newer = linux_archive(setup.server.folder / ARCHIVE, padding=SIZE + 77)
    setup.server.cut_after = []
    assert (await setup.install(PackedPlatform(setup.server.url, sha256=newer))).sha256 == newer


async def test_a_server_without_ranges_does_too(setup: Setup, digest: str) -> None:
    setup.server.ranges = False
    setup.server.cut_after = [700_000, 900_000]
    assert (await setup.install()).sha256 == digest


async def test_a_login_page_with_status_200_is_not_taken_for_an_archive(setup: Setup, digest: str) -> None:
    page = b"<!DOCTYPE html><title>Log in</title>" + b" " * 2000
    setup.server.answers[f"/login/{ARCHIVE}"] = (200, {"content-type": "text/html; charset=utf-8"}, page)
    setup.server.answers[f"/sly/{ARCHIVE}"] = (200, {"content-type": "application/octet-stream"}, page)
    with pytest.raises(Unavailable, match="a web page instead of the archive"):
        await setup.install(PackedPlatform(f"{setup.server.url}/login"))
    with pytest.raises(Unavailable, match="not an archive, perhaps a page that asks to log in"):
        await setup.install(PackedPlatform(f"{setup.server.url}/sly"))
    assert setup.installations.versions() == []
    # The next mirror is asked, and gives the whole file.
    mirrors = PackedPlatform(
        f"{setup.server.url}/login", f"{setup.server.url}/sly", f"{setup.server.url}/gone", setup.server.url
    )
    assert (await setup.install(mirrors)).sha256 == digest


async def test_redirects_are_followed(setup: Setup, digest: str) -> None:
    target = {"location": f"{setup.server.url}/{ARCHIVE}"}
    setup.server.answers[f"/v2026.3/{ARCHIVE}"] = (302, target, b"")
    assert (await setup.install(PackedPlatform(f"{setup.server.url}/v2026.3/"))).sha256 == digest


async def test_mirrors_by_setting_come_after_the_vendor_and_a_missing_file_is_said(setup: Setup, digest: str) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        await setup.install(PackedPlatform(f"{setup.server.url}/gone"))
    setup.set(engine_mirrors=setup.server.url)
    assert (await setup.install(PackedPlatform(f"{setup.server.url}/gone"))).sha256 == digest
    assert [path for path, _ in setup.server.requests][:3] == [f"/gone/{ARCHIVE}"] * 2 + [f"/{ARCHIVE}"]


@pytest.mark.parametrize("as_file", [False, True])
async def test_a_machine_without_a_network_takes_a_folder_or_a_file(
    setup: Setup, digest: str, *, as_file: bool
) -> None:
    place = setup.server.folder / ARCHIVE if as_file else setup.server.folder
    setup.set(engine_mirrors=(str(place),))
    assert (await setup.install(PackedPlatform("http://127.0.0.1:9"))).sha256 == digest
    assert setup.server.requests == []
    assert (setup.server.folder / ARCHIVE).exists(), "it is not ours to remove"


async def test_a_wrong_digest_is_refused_whoever_named_it(setup: Setup, digest: str) -> None:
    wrong = "0" * 64
    with pytest.raises(BadRequest, match=f"does not have the SHA-256 {wrong}"):
        await setup.install(PackedPlatform(setup.server.url, sha256=wrong))
    setup.set(engine_sha256=wrong)
    with pytest.raises(BadRequest, match=f"does not have the SHA-256 {wrong}"):
        await setup.install()
    api = {"assets": [{"name": ARCHIVE, "digest": f"sha256:{wrong}"}, {"name": "other", "digest": None}]}
    setup.server.answers["/api"] = (200, {"content-type": "application/json"}, json.dumps(api).encode())
    setup.set()
    with pytest.raises(BadRequest, match=f"does not have the SHA-256 {wrong}"):
        await setup.install(PackedPlatform(setup.server.url, asset_list=f"{setup.server.url}/api"))
    with pytest.raises(BadRequest, match="bytes instead of 5"):
        await setup.install(PackedPlatform(setup.server.url, size=5))
    assert not list(setup.settings.downloads_dir.glob("*.tar.gz*"))
    assert setup.installations.versions() == []
    # A mirror that has the right file makes good for one that has not.
    good = setup.server.folder / "good"
    good.mkdir()
    (setup.server.folder / ARCHIVE).rename(good / ARCHIVE)
    linux_archive(setup.server.folder / ARCHIVE, padding=SIZE + 1)
    mirrors = PackedPlatform(setup.server.url, f"{setup.server.url}/good", sha256=digest)
    assert (await setup.install(mirrors)).sha256 == digest


async def test_the_digest_that_the_release_page_names_is_used(setup: Setup, digest: str) -> None:
    setup.set(engine_known_digest=True)
    with pytest.raises(PreconditionFailed, match="engine_known_digest demands one"):
        await setup.install()
    assert setup.fetched() == []
    beside = f"{digest.upper()}  {ARCHIVE}\n".encode()
    setup.server.answers[f"/{ARCHIVE}.sha256"] = (200, {"content-type": "application/octet-stream"}, beside)
    with_list = PackedPlatform(setup.server.url, asset_list=f"{setup.server.url}/no-such-api")
    assert (await setup.install(with_list)).sha256 == digest
    assert not (setup.settings.downloads_dir / "digests.json").exists(), "nothing had to be pinned"


async def test_an_archive_that_was_swapped_since_its_first_download_is_refused(setup: Setup, digest: str) -> None:
    installed = await setup.install()
    assert json.loads((setup.settings.downloads_dir / "digests.json").read_text()) == {ARCHIVE: digest}
    shutil.rmtree(installed.directory)
    linux_archive(setup.server.folder / ARCHIVE, padding=SIZE, how="swapped")
    with pytest.raises(BadRequest, match=f"does not have the SHA-256 {digest}"):
        await setup.install()
    assert setup.installations.versions() == []


async def test_d2_12_an_engine_that_is_another_version_or_does_not_run_is_not_installed(setup: Setup) -> None:
    before = await setup.install()
    setup.events.told.clear()
    linux_archive(setup.server.folder / ARCHIVE.replace("2026.3.0", "2026.4.0"), "2026.9.9")
    with pytest.raises(EngineFailed, match=r"holds version 2026\.9\.9, not 2026\.4\.0"):
        await setup.install(version="2026.4.0")
    linux_archive(setup.server.folder / ARCHIVE.replace("2026.3.0", "2026.4.1"), "2026.4.1", how="broken")
    with pytest.raises(EngineFailed, match=r"does not run on this system: .*libmissing\.so\.1"):
        await setup.install(version="2026.4.1")
    assert setup.installations.versions() == [before]
    assert setup.installations.active() == before
    assert "ovms_installed" not in setup.events.names()


async def test_what_the_system_lacks_is_said_with_the_command(setup: Setup) -> None:
    linux_archive(setup.server.folder / ARCHIVE, padding=SIZE, how="broken")
    platform = PackedPlatform(setup.server.url)
    platform.lacks = [
        Requirement("the library libmissing.so.1", "sudo apt install libmissing1"),
        Requirement("a faster disk", "buy one", fatal=False),
    ]
    with pytest.raises(EngineFailed) as caught:
        await setup.install(platform)
    assert "lacks the library libmissing.so.1: sudo apt install libmissing1; then try" in caught.value.message
    assert "faster" not in caught.value.message
    assert setup.installations.versions() == []


async def test_without_room_on_the_disk_nothing_is_begun(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(setup.settings.data_dir.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=70 << 20))
    with pytest.raises(PreconditionFailed, match=r"^Installing the engine needs .* on disk and 73\.4 MB are free"):
        await setup.install()
    # What the server's system has buffered does not tell; what came to this disk does.
    assert not [each for each in setup.settings.data_dir.rglob("*") if each.is_file() and each.stat().st_size > 1 << 16]
    assert not list(setup.settings.versions_dir.glob("*"))


@pytest.mark.parametrize(("step", "what"), [("none", "The download failed"), ("unpack", "Unpacking into")])
async def test_a_disk_that_fills_up_is_one_sentence_and_what_is_there_is_kept(
    setup: Setup, digest: str, step: str, what: str
) -> None:
    if step == "unpack":
        # What is fetched already does not count.
        setup.set(engine_mirrors=(str(setup.server.folder),))
    mirror = setup.server.url if step == "none" else str(setup.server.folder)
    words = [sys.executable, "-c", INSTALLER, str(setup.settings.data_dir), mirror, ARCHIVE, "none"]
    # No file may have more than 2 MB: a real error of a real write, in the middle.
    done = await anyio.run_process(["sh", "-c", 'ulimit -f 4000; exec "$@"', "sh", *words], check=False)
    last = done.stderr.decode().strip().splitlines()[-1]
    assert last.startswith(f"ovms_kernel.errors.OvmsError: {what}"), last
    assert "(File too large); check its space" in last
    assert setup.installations.versions() == []
    assert (await setup.install()).sha256 == digest
    if step == "none":
        assert setup.fetched()[-1].startswith("bytes=")


async def test_an_extension_may_veto_before_anything_is_written(setup: Setup) -> None:
    class Veto:
        @hookimpl
        def ovms_before_install(self, release: Release, target: Path) -> None:
            raise Refused(f"Not {release.version} in {target.name}.")

    setup.events.register({"observers.veto": Veto()})
    with pytest.raises(Refused, match="Not 2026"):
        await setup.install()
    assert not (setup.settings.data_dir / "engine").exists()


async def test_versions_live_side_by_side(setup: Setup) -> None:
    linux_archive(setup.server.folder / ARCHIVE.replace("2026.3.0", "2026.10.0"), "2026.10.0")
    old = await setup.install()
    new = await setup.install(version="2026.10.0", activate=False)
    assert setup.installations.active() == old
    assert [each.version for each in setup.installations.versions()] == ["2026.3.0", "2026.10.0"]
    with pytest.raises(BadRequest, match="is in use"):
        await setup.installations.remove("2026.3.0")
    await setup.installations.activate(new)
    await setup.installations.remove("2026.3.0")
    assert setup.installations.versions() == [new]
    with pytest.raises(NotFound, match=r"installed: 2026\.10\.0"):
        await setup.installations.remove("2026.3.0")


@pytest.mark.parametrize("version", ["..", "a/b", "", ".x", "1.partial", "x" * 80])
async def test_a_version_that_is_no_folder_name_is_refused(setup: Setup, version: str) -> None:
    release = Release(version)
    with pytest.raises(BadRequest, match="is not an engine version"):
        await setup.installations.install("packed", PackedPlatform(), release)


async def test_damaged_notes_and_pointers_are_no_installation(setup: Setup) -> None:
    installed = await setup.install()
    for text in ("", "../../etc", "2026.9.9\n", "\0"):
        setup.settings.active_file.write_text(text)
        assert setup.installations.active() is None
    setup.settings.active_file.write_text("2026.3.0\n")
    for text in ("", "{", "[]", "{}"):
        (installed.directory / "installation.json").write_text(text)
        assert setup.installations.active() is None
    assert (await setup.install()).version == "2026.3.0", "what is damaged is installed anew"
    assert setup.installations.active()


INSTALLER = """
import anyio, sys, json, os
from ovms_kernel.engine import installation, archives
from ovms_kernel.engine.installation import Installations
from ovms_kernel.engine.ovms_linux import launch_on_linux
from ovms_kernel.events import Events
from ovms_kernel.settings import read_settings
from ovms_kernel.values import Requirement, Release

class Platform:
    def launch(self, installation, ports):
        return launch_on_linux(installation)

def die(*_arguments, **_more):
    os.kill(os.getpid(), 9)

data, url, archive, step = sys.argv[1:]
settings = read_settings({}, data_dir=data)
places = {"extract": (archives, "_unpack"), "try": (installation, "try_version"), "publish": (installation, "_publish"),
          "switch": (Installations, "_switch")}
if step in places:
    setattr(*places[step], die)
def report(progress):
    if step == progress.status and progress.completed > 1000000:
        die()
async def main():
    release = Release("2026.3.0", archive, (url,))
    await Installations(settings, Events()).install("packed", Platform(), release, report)
anyio.run(main)
"""
STEPS = ["downloading", "extract", "extracting", "try", "publish", "switch"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_plugin_that_is_killed_while_installing_leaves_nothing_half_done(
    setup: Setup, digest: str, step: str
) -> None:
    command = [sys.executable, "-c", INSTALLER, setup.settings.data_dir, setup.server.url, ARCHIVE, step]
    done = await anyio.run_process([str(word) for word in command], check=False)
    assert done.returncode == ENDED_BY_FORCE, done.stderr.decode()
    assert setup.installations.active() is None
    complete = [each.version for each in setup.installations.versions()]
    assert complete == (["2026.3.0"] if step == "switch" else [])
    before = len(setup.fetched())
    assert before == 1, "all of it is one part"
    assert (await setup.install()).sha256 == digest
    assert setup.installations.active()
    again = setup.fetched()[before:]
    assert len(again) <= (step == "downloading")
    assert all(wanted.startswith("bytes=") for wanted in again)
    left = [path.name for path in (setup.settings.data_dir / "engine").rglob("*.partial*")]
    assert left == []


async def test_a_second_process_does_not_install_at_the_same_time(setup: Setup, digest: str) -> None:
    import threading

    setup.server.hold = threading.Event()
    async with anyio.create_task_group() as group:
        first: list[Installation] = []

        async def install() -> None:
            first.append(await setup.install())

        group.start_soon(install)
        await anyio.to_thread.run_sync(setup.server.halfway.wait)
        command = [sys.executable, "-c", INSTALLER, setup.settings.data_dir, setup.server.url, ARCHIVE, "none"]
        done = await anyio.run_process([str(word) for word in command], check=False, stderr=subprocess.PIPE)
        assert b"Another process is installing an engine" in done.stderr
        setup.server.hold.set()
    assert first[0].sha256 == digest == hashlib.sha256((setup.server.folder / ARCHIVE).read_bytes()).hexdigest()


async def test_a_cancelled_install_stops_fetching_and_resumes(setup: Setup, digest: str) -> None:
    import threading

    setup.server.hold = threading.Event()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(setup.install)
            await anyio.to_thread.run_sync(setup.server.halfway.wait)
            scope.cancel()
    assert setup.installations.versions() == []
    setup.server.hold.set()
    setup.server.hold = None
    setup.server.requests.clear()
    assert (await setup.install()).sha256 == digest
    assert setup.fetched()[0].startswith("bytes=")

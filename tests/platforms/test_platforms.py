"""Every platform's plan, for every kind of host, on whatever machine this runs."""

import sys
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ovms_kernel.engine.ovms import KNOWN, NEWEST, VERIFIED, lacks_for_devices
from ovms_kernel.engine.ovms_linux import missing_libraries
from ovms_kernel.engine.platform_selection import candidates, explain
from ovms_kernel.errors import BadRequest, NotFound, NotSupported, PreconditionFailed
from ovms_kernel.testing.contract import PlatformContract, configured
from ovms_kernel.values import Host, Installation, Ports
from ovms_platform_deepin import Deepin
from ovms_platform_macos import MacOS
from ovms_platform_portable import Portable
from ovms_platform_redhat import RedHat
from ovms_platform_remote import Remote
from ovms_platform_ubuntu2204 import Ubuntu2204
from ovms_platform_ubuntu2404 import Ubuntu2404
from ovms_platform_ubuntu2604 import Ubuntu2604
from ovms_platform_windows import Windows

VENDOR = "https://github.com/openvinotoolkit/model_server/releases/download/v2026.4.1/"
UBUNTU2404 = Host("linux", "x86_64", "ubuntu", "24.04", ("debian",), "noble", libpython=("3.12",))
UBUNTU2204 = Host("linux", "x86_64", "ubuntu", "22.04", ("debian",), "jammy", libpython=("3.10",))
DEEPIN = Host("linux", "x86_64", "deepin", "23", ("debian",), "beige", libpython=("3.12",))
WINDOWS = Host("windows", "x86_64", version="10.0.26100")
MAC = Host("darwin", "arm64", version="15.1")
DRIVERS = {
    "deepin": Deepin(),
    "macos": MacOS(),
    "portable": Portable(),
    "redhat": RedHat(),
    "remote": configured(Remote),
    "ubuntu2204": Ubuntu2204(),
    "ubuntu2404": Ubuntu2404(),
    "ubuntu2604": Ubuntu2604(),
    "windows": Windows(),
}
EMBEDDED = metadata.version("ovms-embedded")


def linux(distribution: str, version: str, codename: str = "", *like: str, **more: Any) -> Host:
    return Host("linux", more.pop("machine", "x86_64"), distribution, version, like, codename, **more)


TABLE = {
    "Ubuntu 24.04": (UBUNTU2404, ["ubuntu2404", "portable"], "ovms_ubuntu24_2026.4.1_python_on.tar.gz"),
    "Ubuntu 24.04 without libpython": (
        linux("ubuntu", "24.04", "noble", "debian", libpython=("3.13",)),
        ["ubuntu2404", "portable"],
        "ovms_ubuntu24_2026.4.1_python_off.tar.gz",
    ),
    "Ubuntu 22.04": (UBUNTU2204, ["ubuntu2204", "portable"], "ovms_ubuntu22_2026.4.1_python_on.tar.gz"),
    "Deepin 23": (DEEPIN, ["deepin", "portable"], "ovms_ubuntu22_2026.4.1_python_off.tar.gz"),
    "Deepin 25": (
        linux("deepin", "25", "crimson", "debian", libpython=("3.10", "3.12")),
        ["deepin", "portable"],
        "ovms_ubuntu22_2026.4.1_python_on.tar.gz",
    ),
    "Deepin 20": (linux("deepin", "20.9", "apricot"), ["portable"], ""),
    "a derivative of Deepin": (
        linux("extra", "23.1", "beige", "deepin", "debian"),
        ["deepin", "portable"],
        "ovms_ubuntu22_2026.4.1_python_off.tar.gz",
    ),
    "Mint 22": (
        linux("linuxmint", "22", "noble", "ubuntu", "debian", libpython=("3.12",)),
        ["ubuntu2404", "portable"],
        "ovms_ubuntu24_2026.4.1_python_on.tar.gz",
    ),
    "Mint 21": (
        linux("linuxmint", "21.3", "jammy", "ubuntu", "debian", libpython=("3.10",)),
        ["ubuntu2204", "portable"],
        "ovms_ubuntu22_2026.4.1_python_on.tar.gz",
    ),
    "Pop!_OS 22.04": (
        linux("pop", "22.04", "jammy", "ubuntu", "debian"),
        ["ubuntu2204", "portable"],
        "ovms_ubuntu22_2026.4.1_python_off.tar.gz",
    ),
    "Debian 12": (
        linux("debian", "12", "bookworm", libpython=("3.11",)),
        ["ubuntu2204", "portable"],
        "ovms_ubuntu22_2026.4.1_python_off.tar.gz",
    ),
    "Debian 13": (
        linux("debian", "13", "trixie", libpython=("3.13",)),
        ["ubuntu2404", "portable"],
        "ovms_ubuntu24_2026.4.1_python_off.tar.gz",
    ),
    "Ubuntu 26.04": (
        linux("ubuntu", "26.04", "resolute", "debian", libpython=("3.14",)),
        ["ubuntu2604", "portable"],
        "ovms_ubuntu24_2026.4.1_python_off.tar.gz",
    ),
    "Ubuntu 26.10": (
        linux("ubuntu", "26.10", "stonking", "debian", libpython=("3.12", "3.14")),
        ["ubuntu2604", "portable"],
        "ovms_ubuntu24_2026.4.1_python_on.tar.gz",
    ),
    "RHEL 9": (
        linux("rhel", "9.6", "", "fedora", libpython=("3.12",)),
        ["redhat", "portable"],
        "ovms_redhat_2026.4.1_python_on.tar.gz",
    ),
    "Alma 9": (
        linux("almalinux", "9.6", "", "rhel", "centos", "fedora"),
        ["redhat", "portable"],
        "ovms_redhat_2026.4.1_python_off.tar.gz",
    ),
    "CentOS Stream 9": (
        linux("centos", "9", "", "rhel", "fedora", libpython=("3.12",)),
        ["redhat", "portable"],
        "ovms_redhat_2026.4.1_python_on.tar.gz",
    ),
    "Oracle Linux 9": (
        linux("ol", "9.4", "", "fedora"),
        ["redhat", "portable"],
        "ovms_redhat_2026.4.1_python_off.tar.gz",
    ),
    "Rocky 10": (
        linux("rocky", "10.0", "", "rhel", "centos", "fedora", libpython=("3.12",)),
        ["redhat", "portable"],
        "ovms_redhat_2026.4.1_python_on.tar.gz",
    ),
    "Rocky 8": (linux("rocky", "8.10", "", "rhel", "centos", "fedora"), ["portable"], ""),
    "Ubuntu 20.04": (linux("ubuntu", "20.04", "focal", "debian"), ["portable"], ""),
    "Fedora": (linux("fedora", "43"), ["redhat", "portable"], "ovms_redhat_2026.4.1_python_off.tar.gz"),
    "Fedora Rawhide": (linux("fedora", "rawhide"), ["portable"], ""),
    "Arch": (linux("arch", ""), ["portable"], ""),
    "Ubuntu on ARM": (linux("ubuntu", "24.04", "noble", "debian", machine="arm64"), ["portable"], ""),
    "Windows 11": (WINDOWS, ["windows", "portable"], "ovms_windows_2026.4.1_python_on.zip"),
    "Windows on ARM": (Host("windows", "arm64"), ["portable"], ""),
    "a Mac": (MAC, ["macos", "portable"], ""),
    "an Intel Mac": (Host("darwin", "x86_64"), ["macos", "portable"], ""),
}


@pytest.mark.parametrize(("host", "chosen", "archive"), TABLE.values(), ids=TABLE)
def test_d2_3_d2_16_every_host_gets_its_platform_and_archive(host: Host, chosen: list[str], archive: str) -> None:
    choices = candidates(host, DRIVERS)
    assert [each.name for each in choices] == chosen
    release = choices[0].platform.release(host, "")
    assert release.archive == archive
    assert release.version == (NEWEST if archive else EMBEDDED)
    assert release.sha256 is None, "no digest is known, none is invented"
    assert (release.mirrors[:1] == (VENDOR,)) == bool(archive)
    assert all(mirror.startswith("https://") for mirror in release.mirrors)


def test_the_choice_is_explained_and_a_setting_wins() -> None:
    def said(host: Host, wanted: str = "", active: Installation | None = None) -> str:
        return explain(host, DRIVERS, wanted, active).text

    debian = TABLE["Debian 12"][0]
    assert said(UBUNTU2404) == "ubuntu2404: built for ubuntu 24.04"
    assert said(TABLE["Mint 22"][0]) == "ubuntu2404: linuxmint 22 derives from its system (noble)"
    assert said(TABLE["Alma 9"][0]) == "redhat: almalinux 9.6 derives from its system"
    assert said(debian) == ("ubuntu2204: built for a system like debian 12; falls back to portable if it does not run")
    assert said(TABLE["Fedora Rawhide"][0]) == "portable: nothing more specific fits fedora rawhide on x86_64"
    assert said(UBUNTU2404, "portable") == "portable: the setting `platform` names it"
    assert said(debian, active=Installation("0.1", Path(), "portable")) == (
        "portable: engine 0.1 in use was installed by it"
    )
    refused = explain(UBUNTU2404, DRIVERS, "beos")
    assert refused.level == "error"
    assert "No platform extension named beos is loaded" in refused.text
    with pytest.raises(NotSupported, match="install ovms-platform-portable"):
        candidates(UBUNTU2404, {})


@pytest.mark.parametrize("name", ["ubuntu2204", "ubuntu2404", "deepin", "windows"])
def test_versions_and_where_they_are_looked_for(name: str) -> None:
    host = {"ubuntu2204": UBUNTU2204, "ubuntu2404": UBUNTU2404, "deepin": DEEPIN, "windows": WINDOWS}[name]
    driver = DRIVERS[name]
    newer = driver.release(host, "2026.4.1")
    assert newer.mirrors[0] == "https://github.com/openvinotoolkit/model_server/releases/download/v2026.4.1/"
    assert newer.asset_list.endswith("/releases/tags/v2026.4.1")
    # The tag of a first release has two numbers up to 2026.3; later ones are looked for under both.
    assert driver.release(host, "2026.3").version == "2026.3.0"
    assert [mirror.split("/")[-2] for mirror in driver.release(host, "2026.4.0").mirrors[:2]] == [
        "v2026.4.0",
        "v2026.4",
    ]
    for wrong in ("latest", "../x", "2026", "1.0", "2026.3.0/..", "v2026.3"):
        with pytest.raises(NotFound, match="has no version"):
            driver.release(host, wrong)


@pytest.mark.parametrize(("host", "chosen", "archive"), TABLE.values(), ids=TABLE)
def test_digests_that_are_known_come_with_the_release(host: Host, chosen: list[str], archive: str) -> None:
    release = candidates(host, DRIVERS)[0].platform.release(host, VERIFIED if archive else "")
    assert (release.archive in KNOWN) == bool(release.sha256) == bool(release.size)
    assert bool(release.sha256) == archive.startswith(("ovms_ubuntu", "ovms_windows"))
    assert release.verified == (VERIFIED if release.sha256 else "")


@pytest.mark.parametrize("driver", [Ubuntu2204(), Deepin()])
def test_the_line_of_ubuntu_22_ends(driver) -> None:
    with pytest.raises(NotFound, match=r"up to version 2026\.4\.1 only"):
        driver.release(UBUNTU2204, "2026.5.0")


FOREIGN = {
    "API_KEY": "x",
    "PYTHONPATH": "/x",
    "PYTHONHOME": "/x",
    "VIRTUAL_ENV": "/x",
    "LD_PRELOAD": "/x",
    "HF_TOKEN": "x",
}


def unpacked(folder: Path, *names: str) -> Installation:
    for name in names:
        path = folder / "2026.3.0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return Installation("2026.3.0", folder / "2026.3.0", "x")


@pytest.mark.needs_posix  # its list of paths cannot hold a drive's colon
@pytest.mark.parametrize("folder", ["plain", "with space", "ünï 模型 'q'"])
@pytest.mark.parametrize("driver", [Ubuntu2204(), Ubuntu2404(), Ubuntu2604(), RedHat(), Deepin()])
def test_d2_12_d2_13_the_launch_on_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver, folder: str) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("PATH", "/foreign/venv/bin")
    for name in ("LC_ALL", "TMPDIR", "TZ", "USER", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    installed = unpacked(tmp_path / folder, "ovms/bin/ovms", "ovms/lib/libopenvino.so")
    root = installed.directory / "ovms"
    plan = driver.launch(installed, Ports(1, 2))
    assert plan.argv == (f"{root}/bin/ovms",)
    off = {
        "HOME": "/home/me",
        "LANG": "C.UTF-8",
        "PATH": f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{root}/bin",
        "LD_LIBRARY_PATH": f"{root}/lib",
    }
    assert plan.env == off
    assert plan.cwd == tmp_path / folder, "never the version's own folder, which may have to be removed"
    unpacked(tmp_path / folder, "ovms/lib/python/pyovms.so", "ovms/share/espeak-ng-data/phontab")
    assert driver.launch(installed, Ports(1, 2)).env == off | {
        "PYTHONPATH": f"{root}/lib/python:{installed.directory}/python_deps",
        "PYTHONNOUSERSITE": "1",
        "ESPEAK_DATA_PATH": f"{root}/share/espeak-ng-data",
    }


def test_the_launch_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SYSTEMROOT", r"D:\Win")
    installed = unpacked(tmp_path / "mit Leerzeichen ü", "ovms/ovms.exe", "ovms/espeak-ng-data/phontab")
    root = installed.directory / "ovms"
    plan = Windows().launch(installed, Ports(1, 2))
    assert plan.argv == (str(root / "ovms.exe"),)
    system = r"D:\Win\System32;D:\Win;D:\Win\System32\Wbem"
    assert plan.env["PATH"] == f"{root};{system}"
    assert plan.env["OVMS_DIR"] == str(root)
    assert plan.env["ESPEAK_DATA_PATH"] == str(root / "espeak-ng-data")
    assert not plan.env.keys() & FOREIGN.keys()
    unpacked(tmp_path / "mit Leerzeichen ü", "ovms/python/python.exe")
    env = Windows().launch(installed, Ports(1, 2)).env
    assert env["PATH"] == f"{root};{root / 'python'};{root / 'python' / 'Scripts'};{system}"
    assert env["PYTHONHOME"] == str(root / "python")
    assert plan.cwd == installed.directory.parent


@pytest.mark.parametrize(("driver", "mark"), [(Ubuntu2404(), ":"), (Windows(), ";")])
def test_a_folder_that_would_break_a_list_of_paths_is_refused(tmp_path: Path, driver, mark: str) -> None:
    with pytest.raises(BadRequest, match="choose another one"):
        driver.launch(Installation("1", tmp_path / f"a{mark}b", "x"), Ports(1, 2))


@pytest.mark.parametrize("driver", [Portable(), MacOS()])
def test_the_launch_of_the_embedded_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    plan = driver.launch(Installation(EMBEDDED, tmp_path, "x"), Ports(1, 2))
    assert plan.argv == (sys.executable, "-I", "-X", "utf8", "-m", "ovms_embedded")
    assert not plan.env.keys() & FOREIGN.keys()
    with pytest.raises(NotFound, match=r"pip install ovms-embedded==9\.9"):
        driver.release(MAC, "9.9")


def test_a_remote_engine_is_named_and_not_pretended_to_be_ours(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    section = {"url": "https://models.example.org/", "grpc": "models.example.org:443", "api_key_file": str(key)}
    remote = configured(Remote, **section, ca_file=str(ca))
    assert candidates(UBUNTU2404, DRIVERS | {"remote": remote})[0].name == "remote"
    installed = Installation("1", tmp_path, "ubuntu2404")
    assert candidates(UBUNTU2404, DRIVERS | {"remote": remote}, active=installed)[0].name == "remote"
    plan = remote.launch(installed, Ports(1, 2))
    assert plan.argv == ()
    assert plan.endpoint
    assert (plan.endpoint.rest, plan.endpoint.grpc) == ("https://models.example.org", "models.example.org:443")
    assert (plan.endpoint.api_key, plan.endpoint.ca_file) == ("secret", str(ca))
    assert "secret" not in repr(plan)
    with pytest.raises(NotSupported, match=r"The administrator of the engine at https://models\.example\.org decides"):
        remote.release(UBUNTU2404, "2026.4.1")
    key.unlink()
    with pytest.raises(PreconditionFailed, match="cannot be read"):
        remote.launch(installed, Ports(1, 2))
    with pytest.raises(PreconditionFailed, match=r"Set platforms\.remote\.url"):
        configured(Remote).launch(installed, Ports(1, 2))


@pytest.mark.parametrize("section", [{"url": "models.example.org"}, {"url": "ftp://x"}])
def test_a_remote_engine_that_is_set_wrongly_is_refused(section: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match=r"platforms\.remote"):
        configured(Remote, **section)


@pytest.mark.needs_posix
class TestDeepin(PlatformContract):
    driver: ClassVar = Deepin
    host: ClassVar = DEEPIN


class TestMacOS(PlatformContract):
    driver: ClassVar = MacOS
    host: ClassVar = MAC


class TestPortable(PlatformContract):
    driver: ClassVar = Portable
    host: ClassVar = TABLE["Arch"][0]


@pytest.mark.needs_posix
class TestUbuntu2204(PlatformContract):
    driver: ClassVar = Ubuntu2204
    host: ClassVar = UBUNTU2204


@pytest.mark.needs_posix
class TestUbuntu2404(PlatformContract):
    driver: ClassVar = Ubuntu2404
    host: ClassVar = UBUNTU2404


@pytest.mark.needs_posix
class TestUbuntu2604(PlatformContract):
    driver: ClassVar = Ubuntu2604
    host: ClassVar = TABLE["Ubuntu 26.04"][0]


@pytest.mark.needs_posix
class TestRedHat(PlatformContract):
    driver: ClassVar = RedHat
    host: ClassVar = TABLE["RHEL 9"][0]


class TestWindows(PlatformContract):
    driver: ClassVar = Windows
    host: ClassVar = WINDOWS


# -- what the system lacks -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's loader")
async def test_missing_libraries_are_found_before_a_start_each_with_its_command(tmp_path: Path) -> None:
    installed = unpacked(tmp_path, "ovms/lib/python/pyovms.so", "ovms/lib/libxml2.so.2")
    program = installed.directory / "ovms/bin/ovms"
    program.parent.mkdir()
    # A real program whose C library has got another name of the same length.
    binary = Path("/bin/sleep").read_bytes()
    assert b"libc.so.6\0" in binary
    program.write_bytes(binary.replace(b"libc.so.6\0", b"libxml2.6\0"))
    program.chmod(0o755)
    assert await missing_libraries([program], {}) == ["libxml2.6"]
    lacks = {each.what: each for each in await Ubuntu2404().requirements(installed)}
    assert lacks["the library libxml2.6"].remedy == "sudo apt install libxml2"
    assert lacks["the library libxml2.6"].fatal
    wheels = next(each for what, each in lacks.items() if "Jinja2" in what) if not _has_jinja() else None
    if wheels:
        assert "--python-version 3.12" in wheels.remedy
        assert f"--target '{installed.directory}/python_deps'" in wheels.remedy
        assert "sudo" not in wheels.remedy
        assert not wheels.fatal
        (installed.directory / "python_deps" / "jinja2").mkdir(parents=True)
    program.write_bytes(binary)
    rest = {each.what for each in await Ubuntu2404().requirements(installed)}
    assert not {what for what in rest if "library" in what or "Jinja2" in what}


def _has_jinja() -> bool:
    return Path("/usr/lib/python3/dist-packages/jinja2").exists()


def test_a_host_without_the_right_libpython_is_told_what_it_misses_and_the_command() -> None:
    bare = TABLE["Ubuntu 24.04 without libpython"][0]
    (finding,) = Ubuntu2404().ovms_check_host(bare)
    assert finding.level == "warning"
    assert "cannot call tools and drops system messages" in finding.text
    assert finding.remedy == "sudo apt install libpython3.12"
    assert Ubuntu2404().ovms_check_host(UBUNTU2404) == []
    (finding,) = RedHat().ovms_check_host(TABLE["Alma 9"][0])
    assert finding.remedy == "sudo dnf install python3.12-libs"
    assert Ubuntu2204().ovms_check_host(bare) == [], "not its host"
    assert Ubuntu2204().ovms_check_host(TABLE["Debian 12"][0]) == [], "there is no such package"


def test_devices_that_cannot_be_used_are_said_with_the_command(tmp_path: Path) -> None:
    assert lacks_for_devices(tmp_path) == []
    vendor = tmp_path / "sys/class/drm/renderD128/device/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x8086\n")
    (tmp_path / "dev/accel").mkdir(parents=True)
    (tmp_path / "dev/accel/accel0").touch()
    lacks = lacks_for_devices(tmp_path)
    assert [each.what for each in lacks] == [
        "access to the GPU",
        "the OpenCL driver of the GPU",
        "the driver of the NPU",
    ]
    assert "usermod -aG render,video" in lacks[0].remedy
    assert not any(each.fatal for each in lacks), "the CPU is always there"
    for path in ("dev/dri/renderD128", "etc/OpenCL/vendors/intel.icd", "usr/lib/x/libze_intel_npu.so.1"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert lacks_for_devices(tmp_path) == []
    vendor.write_text("0x10de\n")
    (tmp_path / "dev/dri/renderD128").unlink()
    assert lacks_for_devices(tmp_path) == [], "a GPU of another maker is not used"


async def test_windows_without_the_runtime_is_told_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    (lack,) = await Windows().requirements(Installation("1", tmp_path, "windows"))
    assert lack.remedy == "winget install --id Microsoft.VCRedist.2015+.x64 -e"
    assert lack.fatal
    (tmp_path / "System32").mkdir()
    for name in ("msvcp140.dll", "vcruntime140.dll", "vcruntime140_1.dll"):
        (tmp_path / "System32" / name).touch()
    assert await Windows().requirements(Installation("1", tmp_path, "windows")) == []

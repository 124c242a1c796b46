"""``ovms-plugin deploy``: AOG can start what it writes, from anywhere, and it touches nothing that is not its own."""

import contextvars
import os
import platform
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import anyio
import pytest
import yaml

from ovms_cli.app import run as run_command
from ovms_face_aog import deploy
from ovms_face_aog.client import AOG, PluginHost
from ovms_face_aog.manifest import executable
from ovms_kernel.engine.host import read_host
from ovms_kernel.errors import NotFound, NotSupported
from ovms_kernel.testing.platform import bare_environment
from ovms_kernel.values import Host

Environment = dict[str, str | None]
PROGRAM = Path(sys.executable).with_name(Path(executable(deploy.this_system())).name)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    return tmp_path / "AOG's $HOME folder" / "plugins"


@pytest.fixture
def command(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], plugins: Path
):
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("OVMS_PLUGIN_PLATFORM", "portable")

    def call(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        # Nothing around it, as at a terminal: a fixture of the whole session may have its event loop here.
        alone = contextvars.Context()
        assert alone.run(run_command, ["deploy", "--plugin-dir", str(plugins), *words]) == code
        return capfd.readouterr().err

    return call


def launcher_of(plugins: Path) -> Path:
    return plugins / "ovms-plugin" / executable(deploy.this_system())


def test_d1_2_d1_7_d1_23_it_writes_a_folder_that_aog_can_start(command, plugins: Path, tmp_path: Path) -> None:
    said = command()
    assert "started once from there" in said
    assert "aog install chat --flavor ovms-plugin" in said
    assert str(plugins) in said
    # D1-23: one stray folder beside it would break AOG's list of plugins.
    assert [each.name for each in plugins.iterdir()] == ["ovms-plugin"]
    manifest = yaml.safe_load((plugins / "ovms-plugin" / "plugin.yaml").read_text("utf-8"))
    [(system, entry)] = manifest["platforms"].items()
    assert system == deploy.this_system()
    launcher = plugins / "ovms-plugin" / entry["executable"]
    assert os.name == "nt" or stat.S_IMODE(launcher.stat().st_mode) == 0o755
    assert manifest["resources"]["data_dir"] == str(tmp_path / "data")
    assert {each["config_ref"].partition(":")[0] for each in manifest["services"]} == {"openvino"}
    files = sorted(each.relative_to(plugins) for each in plugins.rglob("*") if each.is_file())
    assert len(files) == 2


def test_it_names_a_service_that_is_installed(command, plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = {each.name for each in metadata.entry_points(group="ovms.services")}
    others = ",".join(f"services.{each}" for each in services - {"embed"})
    monkeypatch.setenv("OVMS_PLUGIN_DISABLED", others)
    assert "\n  aog install embed --flavor ovms-plugin --model OpenVINO/Qwen3-Embedding" in command()
    command("--remove")
    monkeypatch.setenv("OVMS_PLUGIN_DISABLED", f"{others},services.embed")
    assert command(code=7) == "No service that AOG knows is installed; install one, such as ovms-service-chat.\n"
    assert not (plugins / "ovms-plugin").exists()


def test_d1_3_d1_45_it_says_when_aog_sees_the_plugin_and_which_command_crashes(command) -> None:
    said = command()
    assert "restart AOG, which looks for plugins only when it starts" in said
    assert "aog server stop; aog server start -d" in said
    assert "`aog pull` crashes with any plugin" in said
    assert not any(line.startswith("  aog pull") for line in said.splitlines())


def test_d1_20_it_says_where_aog_itself_does_not_start(command) -> None:
    assert deploy.trouble_of_aog(read_host()) in command()
    for distribution, version in (("ubuntu", "22.04"), ("ubuntu", "24.04"), ("deepin", "25")):
        assert deploy.trouble_of_aog(Host("linux", "x86_64", distribution, version)) == ""
    for system in ("windows", "darwin"):
        assert deploy.trouble_of_aog(Host(system, "x86_64")) == ""
    for distribution, version, name in (
        ("debian", "12", "debian 12"), ("ubuntu", "25.10", "ubuntu 25.10"), ("arch", "", "arch"), ("", "", "this Linux")
    ):  # fmt: skip
        trouble = deploy.trouble_of_aog(Host("linux", "x86_64", distribution, version))
        assert trouble.startswith(f"AOG v0.7 itself crashes at its start on {name}: it runs on Ubuntu 22.04")


def test_bodies_full_names_the_templates_that_keep_every_field(command, plugins: Path) -> None:
    command("--bodies", "full")
    manifest = yaml.safe_load((plugins / "ovms-plugin" / "plugin.yaml").read_text("utf-8"))
    references = {each["service_name"]: each["config_ref"] for each in manifest["services"]}
    assert references["chat"] == "openai:chat"
    assert references["text-to-speech"] == "aog:text-to-speech"


async def test_d1_1_d1_24_d2_39_d2_42_what_it_wrote_depends_on_no_folder_and_no_variable(
    command, plugins: Path, tmp_path: Path, environment: Environment
) -> None:
    data = tmp_path / "da$ta"
    subprocess.run([PROGRAM, "deploy", "--plugin-dir", plugins, "--data-dir", data], check=True, capture_output=True)
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("ovms_kernel.py", "grpc.py", "logging.py"):
        (hostile / name).write_text("raise SystemExit('wrong module')")
    hers = bare_environment(PYTHONPATH=str(hostile), LANG="C", PATH=os.defpath, TMPDIR=str(environment["TMPDIR"]))
    bare: Environment = dict.fromkeys(os.environ) | hers
    async with PluginHost([launcher_of(plugins)], bare, cwd=hostile) as host:
        assert not (await host.call("CheckEngine")).installed
        assert await host.kill() < 2
    # D1-1, D2-39: the data folder is that of plugin.yaml, found from the launcher.
    assert (data / "logs" / "plugin.log").exists()


def test_deploying_again_replaces_and_removing_takes_only_ours(command, plugins: Path) -> None:
    command()
    before = launcher_of(plugins).stat().st_ino
    command()
    assert launcher_of(plugins).stat().st_ino != before
    other = plugins / "other-plugin"
    other.mkdir()
    assert "Removed" in command("--remove")
    assert [each.name for each in plugins.iterdir()] == ["other-plugin"]
    assert "nothing to remove" in command("--remove")


async def test_deploying_again_or_removing_while_the_plugin_runs(
    command, plugins: Path, environment: Environment
) -> None:
    words = [str(PROGRAM), "deploy", "--plugin-dir", str(plugins)]
    await anyio.run_process(words)
    async with PluginHost([launcher_of(plugins)], environment) as host:
        assert b"started once from there" in (await anyio.run_process(words)).stderr
        assert (await host.call("CheckEngine")).code == 0
        files = {each for each in plugins.rglob("*") if each.is_file()}
        assert {each.name for each in files} == {PROGRAM.name, "plugin.yaml"}
        removed = await anyio.run_process([*words, "--remove"], check=False)
        if os.name == "nt":
            assert b"stop AOG first" in removed.stderr
            assert {each for each in plugins.rglob("*") if each.is_file()} == files, "nothing is half removed"
        else:
            assert not (plugins / "ovms-plugin").exists()


@pytest.mark.parametrize("words", [(), ("--remove",)])
def test_another_plugin_of_that_name_is_left_alone(command, plugins: Path, words: tuple[str, ...]) -> None:
    folder = plugins / "ovms-plugin"
    folder.mkdir(parents=True)
    (folder / "plugin.yaml").write_text("version: '1.0'\n")
    said = command(*words, code=2)
    assert "holds another plugin of that name" in said
    assert [each.name for each in folder.iterdir()] == ["plugin.yaml"]


def test_a_folder_that_cannot_be_written_is_one_sentence(command, plugins: Path) -> None:
    plugins.parent.mkdir()
    plugins.write_text("a file")
    said = command(code=4)
    assert "cannot be written" in said
    assert "--plugin-dir" in said
    assert "Traceback" not in said


@pytest.mark.needs_posix  # its launcher is a shell script
def test_what_does_not_start_is_not_left_behind(command, plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "LAUNCHER", "#!/bin/sh\necho '[ERROR] it is broken' >&2\nexit 1\n")
    said = command(code=1)
    assert "AOG could not start the plugin" in said
    assert "it is broken" in said
    assert not (plugins / "ovms-plugin").exists()


@pytest.mark.needs_posix  # its launcher is a shell script
def test_a_moved_environment_is_told_plainly(command, plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command()
    launcher = launcher_of(plugins)
    launcher.write_text(launcher.read_text().replace(sys.executable, "/moved/venv/bin/python"))
    done = subprocess.run([launcher], capture_output=True, text=True, env=os.environ | AOG, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("[ERROR] ")  # AOG's log shows it as an error
    assert "/moved/venv/bin/python" in line
    assert "run `ovms-plugin deploy` again" in line


def test_where_aog_is_and_what_it_runs_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NotFound, match="install and start AOG first"):
        deploy.usual_folder({"APPDATA": str(tmp_path)})
    (tmp_path / "AOG").mkdir()
    assert deploy.usual_folder({"APPDATA": str(tmp_path)}) == tmp_path / "AOG" / "plugins"
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(NotSupported, match="AOG does not run on"):
        deploy.this_system()


def test_on_windows_the_launcher_is_the_installed_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tmp_path / "Scripts"
    scripts.mkdir()
    (scripts / "ovms-plugin.exe").write_bytes(b"MZ program")
    monkeypatch.setattr(sys, "executable", str(scripts / "python.exe"))
    launcher = deploy.write(tmp_path / "ovms-plugin", "# manifest", "windows_amd64")
    assert launcher.relative_to(tmp_path) == Path("ovms-plugin/bin/windows-amd64/ovms-plugin.exe")
    assert launcher.read_bytes() == b"MZ program"
    (scripts / "ovms-plugin.exe").unlink()
    with pytest.raises(NotFound, match="install ovms-plugin"):
        deploy.write(tmp_path / "other", "# manifest", "windows_amd64")


async def test_the_installed_program_itself_is_a_plugin(environment: Environment) -> None:
    async with PluginHost([PROGRAM], environment) as host:
        assert (await host.call("CheckEngine")).code == 0
        assert await host.kill() < 2

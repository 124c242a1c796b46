"""Starting at login: what each system's manager is given."""

import plistlib
import shutil
import subprocess
from pathlib import Path

import pytest

from ovms_cli.autostart import plan
from ovms_kernel.errors import NotSupported

COMMAND = ["/home/小 明/.venv/bin/ovms-plugin", "serve", "--data-dir", "/data/100% $HOME"]


def test_a_systemd_unit_runs_the_very_command(tmp_path: Path) -> None:
    found = plan("linux", COMMAND, tmp_path, {})
    assert found.file == tmp_path / ".config/systemd/user/ovms-plugin.service"
    start = r'ExecStart="/home/小 明/.venv/bin/ovms-plugin" "serve" "--data-dir" "/data/100%% $$HOME"'
    assert start in found.text.decode().splitlines()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    found = plan("linux", ["/bin/sleep", "a b"], tmp_path, {})
    (tmp_path / "ovms-plugin.service").write_bytes(found.text)
    # As a unit of the system, which can be checked where no user is logged in.
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "ovms-plugin.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr


def test_launchd_runs_the_very_command(tmp_path: Path) -> None:
    found = plan("darwin", COMMAND, tmp_path, {})
    described = plistlib.loads(found.text)
    assert described["ProgramArguments"] == COMMAND
    assert described["RunAtLoad"] is True
    assert found.install[0][-1] == str(found.file)


def test_windows_task_quotes_what_has_spaces(tmp_path: Path) -> None:
    found = plan("win32", COMMAND, tmp_path, {})
    assert found.install[0][-1] == '"/home/小 明/.venv/bin/ovms-plugin" serve --data-dir "/data/100% $HOME"'


def test_another_system_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="freebsd14"):
        plan("freebsd14", COMMAND, tmp_path, {})

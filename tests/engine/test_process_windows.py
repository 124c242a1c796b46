"""The calls that make a Job Object, against a kernel32 that writes them down; what they do only Windows can prove."""

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ovms_kernel.engine import process_windows
from ovms_kernel.engine.process_windows import (
    CREATE_BREAKAWAY_FROM_JOB,
    CREATE_NEW_PROCESS_GROUP,
    CREATE_NO_WINDOW,
    CREATE_SUSPENDED,
    ExtendedLimits,
    Job,
    spawn,
)


class Kernel32:
    """Writes down what it is called with; calls named in ``failing`` say no."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.calls: list[str] = []
        self.flags = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "SetInformationJobObject":
                handle, kind, limits, size = arguments
                assert (handle, kind, size) == (77, 9, ctypes.sizeof(ExtendedLimits))
                self.flags = limits._obj.BasicLimitInformation.LimitFlags
            return 0 if name in self.failing else 77

        return call


def test_the_structures_have_the_sizes_of_64_bit_windows() -> None:
    if ctypes.sizeof(ctypes.c_void_p) == 8:
        assert ctypes.sizeof(process_windows.BasicLimits) == 64
        assert ctypes.sizeof(ExtendedLimits) == 144


def test_a_job_ends_its_processes_when_its_handle_is_closed() -> None:
    kernel32 = Kernel32()
    job = Job(kernel32)
    assert kernel32.flags == 0x2000, "JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE and no other limit"
    job.add(5)
    job.end()
    job.close()
    job.close()
    names = ["CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject"]
    assert kernel32.calls == [*names, "TerminateJobObject", "CloseHandle"]


@pytest.mark.parametrize("call", ["CreateJobObjectW", "SetInformationJobObject"])
def test_a_job_that_cannot_be_made_is_an_error_and_no_handle_is_left(call: str) -> None:
    kernel32 = Kernel32(call)
    with pytest.raises(OSError, match="Job"):
        Job(kernel32)
    assert ("CloseHandle" in kernel32.calls) == (call != "CreateJobObjectW")


class Popen:
    """A process that was started; remembers how."""

    started: list[dict[str, Any]]
    refuse_breakaway = False

    def __init__(self, argv: list[str], **more: Any) -> None:
        type(self).started.append(more | {"argv": argv})
        if self.refuse_breakaway and more["creationflags"] & CREATE_BREAKAWAY_FROM_JOB:
            error = PermissionError("access denied")
            error.winerror = 5  # type: ignore[attr-defined]
            raise error
        self.pid, self._handle = 4711, 99
        self.killed = False

    def kill(self) -> None:
        type(self).started.append({"killed": True})

    def wait(self) -> int:
        return 3

    def poll(self) -> int:
        return 3


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Kernel32:
    kernel32 = Kernel32()
    Popen.started, Popen.refuse_breakaway = [], False
    monkeypatch.setattr(process_windows, "_kernel32", lambda: kernel32)
    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(process_windows, "_resume", lambda pid: kernel32.calls.append(f"resume {pid}"))
    return kernel32


async def test_an_engine_is_in_its_job_before_it_runs(windows: Kernel32, tmp_path: Path) -> None:
    process = await spawn(["ovms.exe", "--port", "1"], {"A": "b"}, tmp_path, tmp_path / "log")
    (started,) = Popen.started
    flags = CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW | CREATE_SUSPENDED
    assert started["creationflags"] == flags | CREATE_BREAKAWAY_FROM_JOB
    assert started["env"] == {"A": "b"}
    assert started["stdin"] == subprocess.DEVNULL
    assert started["stdout"].name == started["stderr"].name == str(tmp_path / "log")
    assert windows.calls[-2:] == ["AssignProcessToJobObject", "resume 4711"]
    assert await process.wait() == 3
    assert process.has_ended()
    process.kill()
    process.close()
    assert windows.calls[-2:] == ["TerminateJobObject", "CloseHandle"]


async def test_a_job_around_us_that_nobody_may_leave_is_lived_with(windows: Kernel32, tmp_path: Path) -> None:
    Popen.refuse_breakaway = True
    await spawn(["ovms.exe"], {}, None, tmp_path / "log")
    assert [bool(each["creationflags"] & CREATE_BREAKAWAY_FROM_JOB) for each in Popen.started] == [True, False]


async def test_an_engine_that_does_not_come_into_its_job_does_not_run(windows: Kernel32, tmp_path: Path) -> None:
    windows.failing = ("AssignProcessToJobObject",)
    with pytest.raises(OSError, match="AssignProcessToJobObject"):
        await spawn(["ovms.exe"], {}, None, tmp_path / "log")
    assert Popen.started[-1] == {"killed": True}
    assert windows.calls[-1] == "CloseHandle"
    assert not [each for each in windows.calls if each.startswith("resume")]


@pytest.mark.skipif(sys.platform == "win32", reason="it is there")
async def test_elsewhere_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Windows only"):
        await spawn(["x"], {}, None, tmp_path / "log")

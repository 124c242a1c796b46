"""The engine process: started once, watched, restarted, ended; nothing of it is left, whatever happens."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import anyio
import psutil
import pytest
from msgspec import structs

from ovms_kernel.api.observers import EngineFailed, PreconditionFailed, Refused, TimedOut, Unavailable, hookimpl
from ovms_kernel.engine import engine_log, launch
from ovms_kernel.engine.client import EngineClient
from ovms_kernel.engine.exit_status import cause_of
from ovms_kernel.engine.supervisor import State, Supervisor
from ovms_kernel.processes import start_time
from ovms_kernel.settings import Settings
from ovms_kernel.testing.events import EventRecorder
from ovms_kernel.values import LaunchPatch, Ports
from tests.engine.conftest import INSTALLATION, Engine, engines_of
from tests.processes import end_by_force, freeze, was_ended_by_force


async def test_an_engine_is_ready_when_rest_and_grpc_answer_and_gone_after_stop(engine: Engine) -> None:
    await engine.start()
    info = await engine.supervisor.ensure_ready()
    client = EngineClient(info.endpoint)
    assert await client.live()
    assert await client.grpc_live()
    await client.aclose()
    key_file = launch.key_file(engine.settings)
    assert info.endpoint.api_key == key_file.read_text().strip()
    assert os.name == "nt" or key_file.stat().st_mode & 0o777 == 0o600, "Windows has it in the user's profile"
    await engine.supervisor.stop("test")
    await engine.supervisor.stop("test")
    assert engine.supervisor.state is State.STOPPED
    assert not key_file.exists()
    assert engine.events.names() == ["ovms_amend_launch", "ovms_engine_ready", "ovms_engine_exited"]
    assert engine.supervisor.last_exit is not None
    assert engine.supervisor.last_exit.expected


async def test_an_engine_without_grpc_is_not_ready(settings: Settings) -> None:
    engine = Engine(structs.replace(settings, start_timeout=1.0, restart_limit=1))
    async with engine.supervisor:
        await engine.start("no-grpc")
        with pytest.raises(TimedOut, match="starting"):
            await engine.supervisor.ensure_ready(0.5)


async def test_twenty_starts_at_once_start_one_engine(engine: Engine) -> None:
    found = set()

    async def ask() -> None:
        await engine.start()
        found.add((await engine.supervisor.ensure_ready()).pid)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask)
    assert len(found) == 1
    assert engine.events.names().count("ovms_engine_ready") == 1


async def test_a_killed_engine_is_told_with_its_cause_and_started_again(engine: Engine) -> None:
    await engine.start()
    first = await engine.supervisor.ensure_ready()
    assert first.pid is not None
    end_by_force(first.pid)
    told = await engine.events.wait_for("ovms_engine_exited")
    assert told["will_restart"]
    assert was_ended_by_force(told["exit"])
    assert "killed" in told["exit"].cause or told["exit"].signal is None, "Windows tells no more than a number"
    second = await engine.supervisor.ensure_ready()
    assert second.pid != first.pid


KILLED = "it was killed (signal 9): by the system because memory ran out, or by another program"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param(-9, KILLED, marks=pytest.mark.needs_posix),
        (-15, "it was ended by another program (signal 15)"),
        (-11, "it crashed (segmentation fault): The model is broken"),
        (64, "it did not understand its command line: The model is broken"),
        pytest.param(137, KILLED, marks=pytest.mark.needs_posix),
        (0xC0000005, "it crashed (access violation): The model is broken"),
        (77, "it exited with code 77: The model is broken"),
    ],
)
def test_exit_codes_and_signals_are_told_in_words(code: int, words: str) -> None:
    assert cause_of(code, ["The model is broken."]) == words


def test_what_was_said_of_answered_requests_is_no_cause_of_the_end(tmp_path: Path) -> None:
    old = "[2026-01-01 12:00:00.000][1][serving][error][a.py:1] The size must be divisible by 8"
    refusal = "[2026-01-01 12:00:09.000][1][llm_calculator][error][a.py:1] The prompt is too long"
    last = "[2026-01-01 12:00:09.500][1][serving][error][a.py:1] The disk is full"
    path = tmp_path / "engine.log"
    path.write_text(f"{old}\n | its traceback\n{refusal}\n{last}\nterminate called")
    assert engine_log.last_lines(path) == [last, "terminate called"]
    os.utime(path, (0, 0))
    assert engine_log.last_lines(path) == [], "nothing was said around the end"


async def test_an_engine_that_exits_at_start_is_given_up_after_a_few_tries_with_its_own_words(
    settings: Settings,
) -> None:
    engine = Engine(structs.replace(settings, restart_limit=2))
    async with engine.supervisor:
        await engine.start("exit=1")
        with pytest.raises(Unavailable) as caught:
            await engine.supervisor.ensure_ready()
        assert "given up" in caught.value.message
        assert "The disk is made of cheese" in caught.value.message
        assert engine.events.names().count("ovms_engine_exited") == 3
        assert engine.supervisor.state is State.FAILED
        # Asked again, with the cause fixed, it starts.
        await engine.start()
        assert (await engine.supervisor.ensure_ready()).pid


async def test_d2_9_an_engine_that_never_answers_in_the_time_that_is_set_is_given_up(settings: Settings) -> None:
    engine = Engine(structs.replace(settings, start_timeout=0.5, restart_limit=0))
    async with engine.supervisor:
        await engine.start("never-ready")
        with pytest.raises(Unavailable, match="did not answer"):
            await engine.supervisor.ensure_ready(20)
        assert not engines_of(settings)


async def test_d2_8_an_engine_that_ignores_sigterm_is_killed_with_its_children(settings: Settings) -> None:
    engine = Engine(structs.replace(settings, stop_timeout=0.3))
    async with engine.supervisor:
        await engine.start("ignore-sigterm,child")
        info = await engine.supervisor.ensure_ready()
        family = [psutil.Process(info.pid), *psutil.Process(info.pid).children(recursive=True)]
        assert len([each for each in family if each.name() != "conhost.exe"]) == 2
        await engine.supervisor.stop("test")
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive


async def test_an_engine_that_hangs_is_noticed_ended_and_started_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovms_kernel.engine.supervisor.WATCH_PERIOD", 0.05)
    monkeypatch.setattr("ovms_kernel.engine.client.PROBE_LIMIT", 0.2)
    await engine.start()
    info = await engine.supervisor.ensure_ready()
    assert info.pid is not None
    freeze(info.pid)
    told = await engine.events.wait_for("ovms_engine_exited")
    assert "did not answer" in told["exit"].cause
    assert (await engine.supervisor.ensure_ready()).pid != info.pid


async def test_a_stop_during_a_start_wins(engine: Engine) -> None:
    await engine.start("slow=30")
    with anyio.fail_after(10):
        await engine.supervisor.stop("changed my mind")
    assert engine.supervisor.state is State.STOPPED
    with pytest.raises(Unavailable, match="stopped"):
        await engine.supervisor.ensure_ready()


async def test_a_start_that_comes_when_all_is_cancelled_is_refused_and_keeps_nobody(settings: Settings) -> None:
    """As when a signal comes while a server prepares to start the engine: what supervises it has ended already."""
    engine = Engine(settings)
    with anyio.fail_after(10), anyio.CancelScope() as everything:
        async with engine.supervisor:
            everything.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
                with pytest.raises(Unavailable, match="stopping"):
                    await engine.start()
    assert engine.supervisor.state is State.STOPPED


async def test_ports_that_are_taken_are_not_used(engine: Engine) -> None:
    import socket

    with socket.socket() as rest, socket.socket() as grpc:
        for each in (rest, grpc):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rest.bind(("127.0.0.1", engine.settings.rest_port))
        rest.listen()
        grpc.bind(("127.0.0.1", engine.settings.grpc_port))
        grpc.listen()
        await engine.start()
        info = await engine.supervisor.ensure_ready()
        assert str(engine.settings.rest_port) not in info.endpoint.rest
        assert str(engine.settings.grpc_port) not in info.endpoint.grpc


async def test_an_engine_that_found_its_port_busy_is_told_and_started_again_on_others(engine: Engine) -> None:
    # As OVMS does: it lives on for a while, answers no probe, and then ends.
    await engine.start("busy=1")
    told = await engine.events.wait_for("ovms_engine_exited")
    assert told["will_restart"]
    assert f"Failed to start REST server at port {engine.settings.rest_port}" in told["exit"].cause
    assert "ovms_engine_ready" not in engine.events.names()
    engine.platform.how = ""
    assert (await engine.supervisor.ensure_ready()).pid


async def test_an_unwritable_log_folder_is_one_sentence(engine: Engine) -> None:
    engine.settings.logs_dir.write_text("a file where the folder should be")
    await engine.start()
    with pytest.raises(Unavailable, match=r"log .* cannot be written"):
        await engine.supervisor.ensure_ready()
    engine.settings.logs_dir.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="these files are Linux's")
@pytest.mark.parametrize("kind", ["fifo", "full"])
async def test_a_log_that_is_no_file_is_replaced_by_one(engine: Engine, kind: str) -> None:
    path = engine.settings.logs_dir / "engine.log"
    path.parent.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full")
    assert engine_log.log_lines(path) == []
    with anyio.fail_after(20):
        await engine.start()
        await engine.supervisor.ensure_ready()
    assert path.is_file()
    assert not path.is_symlink()


@pytest.mark.parametrize(
    "change",
    [{"pid": -1}, {"pid": "text"}, {"pid": 0}, {"owner": None}, {"rest": 1.5}, {"started": "x"}, {"pid": True}],
)
async def test_a_damaged_note_of_the_running_engine_counts_as_none(engine: Engine, change: dict[str, object]) -> None:
    await engine.start()
    await engine.supervisor.ensure_ready()
    note = engine.settings.run_dir / "engine.json"
    assert launch.read_running(engine.settings)
    note.write_text(json.dumps(json.loads(note.read_text()) | change))
    assert launch.read_running(engine.settings) is None
    await engine.supervisor.stop("test")
    await engine.start()
    assert (await engine.supervisor.ensure_ready()).pid


async def test_a_full_disk_at_start_is_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(engine.settings.run_dir))

    monkeypatch.setattr(launch, "write_key", full)
    await engine.start()
    with pytest.raises(PreconditionFailed, match=r"failed because the disk is full .*free some space"):
        await engine.supervisor.ensure_ready()


async def test_a_program_that_is_not_there_is_one_sentence(engine: Engine) -> None:
    engine.platform.program = ("/no/such/program",)
    await engine.start()
    with pytest.raises(EngineFailed, match="/no/such/program cannot be started"):
        await engine.supervisor.ensure_ready()


async def test_extensions_may_amend_a_launch_or_veto_it(settings: Settings) -> None:
    class Amends:
        @hookimpl
        def ovms_amend_launch(self) -> LaunchPatch:
            return LaunchPatch(env={"COLOUR": "red"})

    class Vetoes:
        @hookimpl
        def ovms_amend_launch(self) -> LaunchPatch:
            raise Refused("Not today.")

    engine = Engine(settings)
    engine.events.register({"amends": Amends()})
    async with engine.supervisor:
        await engine.start()
        info = await engine.supervisor.ensure_ready()
        environment = psutil.Process(info.pid).environ()
        assert environment["COLOUR"] == "red"
        assert "HOME" not in environment, "nothing of the plugin is inherited"
    engine = Engine(settings)
    engine.events.register({"vetoes": Vetoes()})
    async with engine.supervisor:
        await engine.start()
        with pytest.raises(Refused, match=r"Not today\. \(extension vetoes\)"):
            await engine.supervisor.ensure_ready()


# -- two plugins, dead plugins -------------------------------------------------------------------------------------


async def test_a_second_plugin_uses_the_first_ones_engine_and_takes_over_when_that_ends(engine: Engine) -> None:
    await engine.start()
    first = await engine.supervisor.ensure_ready()
    second = Supervisor(engine.settings, EventRecorder())
    async with second:
        await second.start(engine.platform, INSTALLATION)
        guest = await second.ensure_ready()
        assert (guest.pid, guest.endpoint) == (first.pid, first.endpoint)
        await engine.supervisor.stop("the first ends")
        assert isinstance(second._events, EventRecorder)
        await second._events.wait_for("ovms_engine_ready", count=2)
        own = await second.ensure_ready()
        assert own.pid != first.pid


PLUGIN = """
import sys, anyio
from pathlib import Path
from ovms_kernel.engine.supervisor import Supervisor
from ovms_kernel.events import Events
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.platform import MisbehavingPlatform, MisbehavingSettings
from ovms_kernel.values import Installation

async def main():
    settings = read_settings({}, data_dir=sys.argv[1])
    async with Supervisor(settings, Events()) as supervisor:
        platform = MisbehavingPlatform(MisbehavingSettings(sys.argv[2]))
        await supervisor.start(platform, Installation("1.0", Path(), "x"))
        print((await supervisor.ensure_ready()).pid, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.mark.parametrize("how", ["", "ignore-sigterm,child"])
async def test_a_killed_plugin_takes_its_engine_with_it(settings: Settings, how: str) -> None:
    plugin = subprocess.Popen(
        [sys.executable, "-c", PLUGIN, str(settings.data_dir), how], stdout=subprocess.PIPE, text=True
    )
    assert plugin.stdout is not None
    family = [psutil.Process(int(plugin.stdout.readline()))]
    family += family[0].children(recursive=True)
    plugin.kill()
    plugin.wait()
    plugin.stdout.close()
    began = time.monotonic()
    _, alive = await anyio.to_thread.run_sync(lambda: psutil.wait_procs(family, timeout=5))
    assert not alive, f"alive after {time.monotonic() - began:.1f} s"


async def test_an_engine_of_a_dead_plugin_is_ended_by_the_next_one_but_a_stranger_with_its_pid_is_not(
    engine: Engine,
) -> None:
    settings = engine.settings
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    stale = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        note = launch.RunningEngine(stranger.pid, start_time(stranger.pid) - 100, 1, "1.0", 1, 2)
        launch.note_running(settings, note)
        await engine.start()
        await engine.supervisor.ensure_ready()
        await engine.supervisor.stop("test")
        assert stranger.poll() is None
        launch.note_running(settings, launch.RunningEngine(stale.pid, start_time(stale.pid), 1, "1.0", 1, 2))
        await engine.start()
        await engine.supervisor.ensure_ready()
        assert stale.wait(5) != 0
    finally:
        for each in (stranger, stale):
            each.kill()
            each.wait()


@pytest.mark.needs_posix  # counts descriptors
async def test_a_hundred_starts_and_stops_leave_nothing_behind(engine: Engine) -> None:
    # A program that starts faster than Python; that it never answers does not matter to starting and stopping.
    engine.platform.program = ("/bin/sh", "-c", "exec sleep 60")
    await engine.start()
    await engine.events.wait_for("ovms_amend_launch")
    await engine.supervisor.stop("the first opens what stays open")
    before = psutil.Process().num_fds()
    for number in range(2, 102):
        await engine.start()
        await engine.events.wait_for("ovms_amend_launch", count=number)
        await engine.supervisor.stop("test")
    assert engine.supervisor.state is State.STOPPED
    assert engine.events.names().count("ovms_engine_exited") == 101, "each of them did run"
    assert psutil.Process().num_fds() <= before


async def test_an_engine_of_somebody_else_on_the_chosen_port_is_not_taken_for_ours(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        psutil.Process().net_connections("tcp4")
    except RuntimeError:
        pytest.skip("this system does not tell who listens on a port, as Wine")
    # Between choosing a port and listening on it somebody else may take it; here that is certain.
    await engine.start()
    info = await engine.supervisor.ensure_ready()
    monkeypatch.setattr(launch, "choose_ports", lambda settings: Ports(settings.rest_port, settings.grpc_port))
    other = Engine(
        structs.replace(engine.settings, data_dir=engine.settings.data_dir.with_name("other"), restart_limit=0)
    )
    other.settings.models_dir.mkdir(parents=True)
    other.settings.config_json.write_text('{"model_config_list": []}')
    async with other.supervisor:
        await other.start()
        with pytest.raises(Unavailable, match="given up"):
            await other.supervisor.ensure_ready()
        assert "ovms_engine_ready" not in other.events.names()
    assert (await engine.supervisor.ensure_ready()).pid == info.pid

"""What goes wrong on users' machines, one test each: nothing is lost, nothing is left behind, the cause is in words."""

import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest

from ovms_graph_text_generation import TextGeneration
from ovms_kernel.api.services import Call, Engine, EngineFailed, Route, ServiceDefinition, Unavailable, forward
from ovms_kernel.compose import compose_kernel
from ovms_kernel.engine import engine_log, launch, probe
from ovms_kernel.engine.client import EngineClient
from ovms_kernel.engine.probe import IdleProbe
from ovms_kernel.engine.supervisor import Supervisor
from ovms_kernel.events import Events
from ovms_kernel.extensions import Extensions
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models import vetting
from ovms_kernel.models.passport import Key, Passports
from ovms_kernel.models.plan import Resident, State
from ovms_kernel.models.vetting import Vetting, questions_of
from ovms_kernel.processes import start_time
from ovms_kernel.settings import Settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.events import EventRecorder
from ovms_kernel.testing.platform import MisbehavingPlatform
from ovms_kernel.values import Answer, EngineExit, EngineInfo, Host, Installation, LaunchPlan, Request
from tests.processes import end_by_force

HOST = Host("linux", "x86_64", "ubuntu", "24.04", memory=16 << 30)
INSTALLATION = Installation("1.0", Path(), "misbehaving")
MODEL = "tiny/text"


class Chat:
    definition = ServiceDefinition("chat", "text_generation", "/v3/chat/completions", probes=('{"max_tokens": 1}',))

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        return await forward(Route(self.definition), call, engine)


class Watcher:
    def __init__(self) -> None:
        self.exits: list[tuple[EngineExit, bool]] = []
        self.ready: list[EngineInfo] = []
        self.steal: Callable[[LaunchPlan], None] | None = None

    @hookimpl
    async def ovms_engine_exited(self, exit: EngineExit, will_restart: bool) -> None:  # noqa: A002
        self.exits.append((exit, will_restart))

    @hookimpl
    async def ovms_engine_ready(self, engine: EngineInfo) -> None:
        self.ready.append(engine)

    @hookimpl
    async def ovms_amend_launch(self, plan: LaunchPlan) -> None:
        if self.steal:
            self.steal(plan)


class Setup:
    def __init__(self, settings: Settings) -> None:
        self.watcher, self.platform = Watcher(), configured(MisbehavingPlatform)
        extensions: Any = Extensions(
            services={"chat": Chat()},
            platforms={"misbehaving": self.platform},
            graphs={"text_generation": TextGeneration({})},
            observers={"watcher": self.watcher},
        )
        self.kernel = compose_kernel(settings, host=HOST, extensions=extensions)

    async def ask(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            (await self.kernel.invoke("chat", Request(b'{"model": "%s"}' % MODEL.encode()))).body
        )
        return answer


@pytest.fixture
async def setup(settings: Settings, fixtures: Path) -> AsyncIterator[Setup]:
    setup = Setup(settings)
    async with setup.kernel:
        await setup.kernel.install_engine()
        await setup.kernel.import_model(fixtures / "text_generation", MODEL)
        yield setup


async def wait_until(condition: Callable[[], object], limit: float = 15.0) -> None:
    with anyio.fail_after(limit):
        while not condition():  # noqa: ASYNC110 - of other processes nobody tells
            await anyio.sleep(0.01)


@pytest.mark.needs_posix  # sets a limit to its memory
@pytest.mark.needs_posix  # a limit of memory, and the signal that ends who passes it
async def test_an_engine_that_leaks_until_it_is_killed_is_named_as_such_and_serves_again(setup: Setup) -> None:
    setup.platform.how = "leak"
    with pytest.raises((EngineFailed, Unavailable)):
        await setup.ask()
    setup.platform.how = ""
    await wait_until(lambda: setup.watcher.exits)
    assert (await setup.ask())["asked"]["model"] == MODEL
    ended, will_restart = setup.watcher.exits[0]
    assert "memory ran out" in ended.cause
    assert ended.signal == signal.SIGKILL
    assert will_restart


async def test_ports_that_are_stolen_before_the_engine_takes_them_cost_one_try(setup: Setup) -> None:
    with ExitStack() as held:

        def steal(plan: LaunchPlan) -> None:
            setup.watcher.steal = None
            ports = setup.kernel.supervisor._ports
            for port in (ports.rest, ports.grpc):
                thief = held.enter_context(socket.socket())
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                thief.bind(("127.0.0.1", port))
                thief.listen()

        setup.watcher.steal = steal
        info = await setup.kernel.engine()
        assert info.endpoint.rest != f"http://127.0.0.1:{setup.kernel.settings.rest_port}"
    assert "another program took its port" in setup.watcher.exits[0][0].cause


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"model_config_list": 5}', b"\xff\xfe\x00"])
async def test_a_damaged_configuration_does_not_keep_the_engine_from_starting(setup: Setup, text: bytes) -> None:
    setup.platform.how = "strict"
    await setup.kernel.load_model(MODEL)
    await setup.kernel.stop_engine()
    setup.kernel.settings.config_json.write_bytes(text)
    assert (await setup.ask())["asked"]["model"] == MODEL


async def test_an_engine_that_is_well_but_does_no_work_is_noticed_and_started_again(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovms_kernel.engine.supervisor.WATCH_PERIOD", 0.05)
    monkeypatch.setattr(probe, "IDLE", 0.1)
    monkeypatch.setattr(vetting, "LIMIT", 0.3)
    setup.platform.how = "wedged"
    await setup.kernel.load_model(MODEL)
    assert await setup.kernel.supervisor.ensure_ready()
    setup.platform.how = ""
    await wait_until(lambda: setup.watcher.exits)
    assert "did not answer" in setup.watcher.exits[0][0].cause
    await wait_until(lambda: len(setup.watcher.ready) == 2)
    assert (await setup.ask())["asked"]["model"] == MODEL
    # A healthy one is left alone, however often it is asked.
    pid = setup.watcher.ready[1].pid
    await anyio.sleep(1)
    info = await setup.kernel.engine()
    assert info.pid == pid


async def test_a_busy_engine_is_not_probed_and_one_model_is_asked_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    class Client:
        async def post(self, path: str, body: bytes) -> None:
            asked.append(json.loads(body) | {"path": path})

    def loaded(name: str, model_type: str = "text_generation", **more: Any) -> Resident:
        return Resident(name, SimpleNamespace(id=name, model_type=model_type), state=State.LOADED, **more)  # type: ignore[arg-type]

    client: Any = Client()

    async def connect() -> Any:
        return client

    models = [loaded("b"), loaded("a"), loaded("voice", "text_to_speech")]
    models[0].last_used = time.monotonic()
    vetting = Vetting(
        Passports(tmp_path), questions_of([Chat()]), Events(), ("CPU",), lambda device: Key("1.0", device), connect
    )
    idle = IdleProbe(vetting.probe, {each.id: each for each in models})
    assert await idle(client)
    assert asked == [], "it was used a moment ago"
    monkeypatch.setattr(probe, "IDLE", 0.0)
    for _ in range(3):
        assert await idle(client)
    assert [(each["model"], each["max_tokens"]) for each in asked] == [("b", 1), ("a", 1), ("b", 1)]
    assert asked[0]["path"] == "/v3/chat/completions"
    models[2].users = 1
    assert await idle(client)
    assert len(asked) == 3, "the engine is busy"
    models[2].users = 0
    monkeypatch.setattr(probe, "IDLE", 60.0)
    assert await idle(client)
    assert len(asked) == 3, "a probe that was answered is as good as a request"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the start of a process from the clock")
async def test_a_clock_that_is_set_does_not_make_a_running_engine_a_stranger(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        note = launch.RunningEngine(sleeper.pid, start_time(sleeper.pid), 1, "1.0", 1, 2)
        launch.note_running(settings, note)
        # What psutil computes start times from: the clock's time at boot.
        real = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: real + 7200)
        read = launch.read_running(settings)
        assert read == note
        assert launch.is_alive(read)
        # After a restart of the system the same numbers say nothing.
        monkeypatch.setattr("ovms_kernel.processes.boot", lambda: "another")
        assert launch.read_running(settings) is None
    finally:
        sleeper.kill()
        sleeper.wait()
    assert not launch.is_alive(note)


async def test_a_damaged_note_of_a_running_engine_is_no_note(settings: Settings) -> None:
    settings.run_dir.mkdir(parents=True)
    for text in ("", "{", "[]", '{"pid": 1}', '{"boot": "x"}', "null"):
        (settings.run_dir / "engine.json").write_text(text)
        assert launch.read_running(settings) is None


async def test_requests_in_flight_end_at_once_when_the_engine_is_killed(setup: Setup) -> None:
    setup.platform.how = "wedged"
    info = await setup.kernel.engine()
    assert info.pid
    async with anyio.create_task_group() as group:
        failures: list[BaseException] = []

        async def ask() -> None:
            try:
                await setup.ask()
            except (EngineFailed, Unavailable) as error:
                failures.append(error)

        await setup.kernel.load_model(MODEL)
        for _ in range(20):
            group.start_soon(ask)
        await anyio.sleep(0.2)  # they have been sent; that they wait nobody tells
        began = time.monotonic()
        setup.platform.how = ""
        end_by_force(info.pid)
    assert len(failures) == 20
    assert time.monotonic() - began < 1


@pytest.mark.needs_posix  # looks at permissions
async def test_what_run_holds_is_for_this_user_only_and_gone_after_a_stop(setup: Setup) -> None:
    info = await setup.kernel.engine()
    folder = setup.kernel.settings.run_dir
    assert folder.stat().st_mode & 0o077 == 0
    for name in ("api_key", "engine.json"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    command = psutil.Process(info.pid).cmdline()
    key = (folder / "api_key").read_text().strip()
    assert key
    assert info.endpoint.api_key == key
    assert not [word for word in command if key in word], "a command line is for everybody to see"
    flags = dict(itertools.pairwise(command))
    assert flags["--rest_bind_address"] == flags["--grpc_bind_address"] == "127.0.0.1"
    assert flags["--config_path"] == str(setup.kernel.settings.config_json)
    assert flags["--file_system_poll_wait_seconds"] == "0"
    await setup.kernel.stop_engine()
    assert not (folder / "api_key").exists()
    assert not (folder / "engine.json").exists()


async def test_the_log_is_rotated_and_never_ours(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    log = settings.logs_dir / "engine.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * (engine_log.LOG_LIMIT + 1))
    events, platform = EventRecorder(), configured(MisbehavingPlatform, how="exit=1")
    async with Supervisor(settings, events) as supervisor:
        await supervisor.start(platform, INSTALLATION, trial=True)
        with pytest.raises(Unavailable, match="made of cheese"):
            await supervisor.ensure_ready()
    assert log.with_suffix(".log.1").stat().st_size == engine_log.LOG_LIMIT + 1
    assert "made of cheese" in log.read_text()
    assert "cheese" not in "".join(capfd.readouterr())


@pytest.mark.needs_posix  # on Windows a log is set aside when an engine starts
async def test_the_log_of_a_running_engine_is_set_aside_without_losing_its_place(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovms_kernel.engine.supervisor.WATCH_PERIOD", 0.05)
    await setup.kernel.engine()
    log = setup.kernel.settings.logs_dir / "engine.log"
    with log.open("ab") as file:
        file.write(b"x" * (engine_log.LOG_LIMIT + 1))
    await wait_until(lambda: log.stat().st_size == 0)
    assert log.with_suffix(".log.1").stat().st_size > engine_log.LOG_LIMIT
    setup.platform.how = "exit=1"
    end_by_force((await setup.kernel.engine()).pid or 0)
    await wait_until(lambda: len(setup.watcher.exits) > 1)
    assert "made of cheese" in setup.watcher.exits[1][0].cause, "what is written after it is found"


@pytest.mark.needs_posix  # limits the size of files
def test_a_disk_too_full_to_set_a_log_aside_costs_no_older_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    monkeypatch.setattr(engine_log, "LOG_LIMIT", 1 << 20)
    log = settings.logs_dir / "engine.log"
    log.parent.mkdir()
    kept = {f"engine.log.{number}": f"old {number}\n".encode() for number in range(1, engine_log.LOGS_KEPT + 1)}
    for name, content in {**kept, log.name: bytes(2 << 20)}.items():
        (log.parent / name).write_bytes(content)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may have more than 1 MB: a real error of a real write, in the middle.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert not engine_log.cut_log(log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.messages == [f"The engine's log {log} cannot be set aside (File too large); fix that."]
    assert log.stat().st_size == 2 << 20
    log.unlink()
    assert {each.name: each.read_bytes() for each in log.parent.iterdir()} == kept


PLUGIN = """
import sys, anyio
from pathlib import Path
from ovms_kernel.engine.supervisor import Supervisor
from ovms_kernel.events import Events
from ovms_kernel.settings import read_settings
from ovms_kernel.testing.contract import configured
from ovms_kernel.testing.platform import MisbehavingPlatform
from ovms_kernel.values import Installation
async def main():
    settings = read_settings({}, data_dir=sys.argv[1])
    async with Supervisor(settings, Events()) as supervisor:
        print("go", flush=True)
        await supervisor.start(configured(MisbehavingPlatform), Installation("1.0", Path(), "misbehaving"))
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_a_plugin_that_is_killed_at_any_moment_of_a_start_leaves_no_engine(settings: Settings) -> None:
    source = random.Random(6)
    # The last one is killed when its engine is there for certain, however slow the machine is.
    for moment in [source.uniform(0, 0.12) for _ in range(6)] + [None]:
        plugin = subprocess.Popen([sys.executable, "-c", PLUGIN, settings.data_dir], stdout=subprocess.PIPE)
        assert plugin.stdout
        await anyio.to_thread.run_sync(plugin.stdout.readline)
        if moment is None:
            await wait_until(lambda: commands_with(settings))
        else:
            await anyio.sleep(moment)
        plugin.kill()
        plugin.wait()
        plugin.stdout.close()
        await wait_until(lambda: not commands_with(settings), 5)


def commands_with(settings: Settings) -> list[list[str]]:
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.Error, OSError):  # it ends in this moment
            continue
        if str(settings.config_json) in command:
            found.append(command)
    return found


async def test_twenty_kernels_in_one_data_folder_share_one_engine(setup: Setup, settings: Settings) -> None:
    """As many plugins and commands at once; here in one process, where locks count between objects all the same."""
    async with anyio.create_task_group() as group:
        pids: list[int | None] = []

        async def use() -> None:
            other = Setup(settings)
            async with other.kernel:
                pids.append((await other.kernel.engine()).pid)

        first = await setup.kernel.engine()
        for _ in range(20):
            group.start_soon(use)
    assert pids == [first.pid] * 20
    client = EngineClient(first.endpoint)
    assert await client.live(), "guests do not stop it"
    await client.aclose()

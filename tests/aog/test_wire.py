"""go-plugin's wire, with the plugin as a process: how it starts, what it refuses, how it ends."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import grpc
import psutil
import pytest

from ovms_face_aog.client import AOG, PluginFailed, PluginHost, ProviderClient, connect, plugin_command
from tests.aog.conftest import add_extension

Environment = dict[str, str | None]


def run_bare(environment: Environment, **changes: str | None) -> subprocess.CompletedProcess[str]:
    values = {**os.environ, **AOG, **environment, **changes}
    return subprocess.run(
        plugin_command(),
        env={name: value for name, value in values.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


async def install_and_start(host: PluginHost) -> None:
    for method in ("InstallEngine", "InitEnv", "StartEngine"):
        response = await host.call(method)
        assert response.code == 0, response.message
    for _ in range(100):
        if (await host.call("HealthCheck")).code == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError((await host.call("HealthCheck")).message)


def engines(pid: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(pid).children(recursive=True) if "--rest_port" in each.cmdline()]


async def gone(process: psutil.Process, limit: float = 5.0) -> bool:
    async with asyncio.timeout(limit):
        with suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - not ours
                await asyncio.sleep(0.02)
    return True


# -- start ---------------------------------------------------------------------------------------------------------


@pytest.mark.needs_posix  # a Unix socket
async def test_handshake_over_a_private_unix_socket(plugin: PluginHost, short_path: Path) -> None:
    core, version, network, address, protocol, certificate = plugin.stdout.decode().rstrip("\n").split("|")
    assert (core, version, network, protocol, certificate) == ("1", "1", "unix", "grpc", "")
    assert Path(address).parent.parent == short_path
    assert stat.S_IMODE(Path(address).parent.stat().st_mode) == 0o700
    assert await plugin.ping()


async def test_d1_6_handshake_comes_before_the_kernel_is_composed(environment: Environment) -> None:
    site = Path(str(environment["PYTHONPATH"]))
    go_on = site / "go on"
    slow = f"import time, pathlib\nwhile not pathlib.Path({str(go_on)!r}).exists():\n    time.sleep(0.01)\n"
    slow += "class Slow:\n    def __init__(self, section): pass\n"
    (site / "slow.py").write_text(slow)
    info = site / "slow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ovms.observers]\nslow = slow:Slow\n")
    async with PluginHost(plugin_command(), environment) as host:
        go_on.touch()  # a kernel that came before the handshake would have waited for this in vain
        assert not (await host.call("CheckEngine")).installed  # waits for the composed kernel
        await host.kill()


async def test_tcp_within_the_range_when_no_socket_can_be_had(environment: Environment, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    changes = {"PLUGIN_UNIX_SOCKET_DIR": str(deep), "PLUGIN_MIN_PORT": "21000", "PLUGIN_MAX_PORT": "21100"}
    async with (
        PluginHost(plugin_command(), environment | changes) as one,
        PluginHost(plugin_command(), environment | changes) as two,
    ):
        assert await one.ping()
        assert await two.ping()
        ports = {int(each.address.removeprefix("127.0.0.1:")) for each in (one, two)}
        assert len(ports) == 2
        assert ports <= set(range(21000, 21101))
        assert not list(deep.iterdir())
        await one.kill()
        await two.kill()


def test_no_free_port_is_one_sentence(environment: Environment, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    done = run_bare(environment, PLUGIN_UNIX_SOCKET_DIR=str(deep), PLUGIN_MIN_PORT="1", PLUGIN_MAX_PORT="0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "No TCP port from 1 to 0 is free" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.needs_posix  # a Unix socket
async def test_a_long_folder_of_temporary_files_is_no_obstacle(environment: Environment, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    async with PluginHost(plugin_command(), environment | {"TMPDIR": str(deep)}) as host:
        assert host.address.startswith("unix:/tmp/ovms-plugin-")
        folder = Path(host.address.removeprefix("unix:")).parent
        await host.kill()
    assert not folder.exists()


BESIDE = """
import asyncio
from pathlib import Path
class Beside:
    settings_type = dict
    def __init__(self, section):
        self.file = Path(section["file"])
    async def serve(self, kernel):
        self.file.write_text(" ".join(sorted((await kernel).services)))
        try:
            await asyncio.Event().wait()
        finally:
            self.file.write_text("ended")
class Broken:
    settings_type = dict
    def __init__(self, section): pass
    async def serve(self, kernel):
        raise RuntimeError("no good")
"""


async def test_other_faces_are_served_beside_it_and_one_that_fails_costs_nobody_else_anything(
    environment: Environment, tmp_path: Path
) -> None:
    entries = "beside = beside:Beside\nbroken = beside:Broken"
    add_extension(Path(str(environment["PYTHONPATH"])), "beside", "ovms.faces", entries, BESIDE)
    told = tmp_path / "told"
    wanted = {
        "OVMS_PLUGIN_FACES__BESIDE__WITH_AOG": "true",
        "OVMS_PLUGIN_FACES__BESIDE__FILE": str(told),
        "OVMS_PLUGIN_FACES__BROKEN__WITH_AOG": "true",
    }
    async with PluginHost(plugin_command(), environment | wanted) as host:
        async with asyncio.timeout(30):
            while not (told.exists() and any("no good" in line for line in host.stderr)):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)
        assert "chat" in told.read_text()
        assert any("faces.broken of beside 1.0 failed" in line for line in host.stderr)
        assert not (await host.call("CheckEngine")).installed
        assert await host.kill() < 2
    assert told.read_text() == "ended"


@pytest.mark.parametrize("cookie", [None, "", "other-plugin"])
def test_without_the_cookie_a_person_is_told_what_it_is(environment: Environment, cookie: str | None) -> None:
    done = run_bare(environment, AOG_PLUGIN=cookie)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "is a plugin that a host such as AOG starts" in done.stderr
    assert "ovms-plugin --help" in done.stderr


def test_without_the_command_a_person_is_not_sent_to_it() -> None:
    alone = "import sys; sys.modules['ovms_cli'] = None; from ovms_face_aog.serve import main; main()"
    done = subprocess.run([sys.executable, "-c", alone], check=False, capture_output=True, text=True)
    assert "ovms-plugin --help" not in done.stderr
    assert done.stderr.endswith("Install ovms-cli for a command to use at a terminal, which also makes AOG find it.\n")


@pytest.mark.parametrize(
    ("variable", "words"), [("PLUGIN_CLIENT_CERT", "AutoMTLS"), ("PLUGIN_MULTIPLEX_GRPC", "multiplexing")]
)
def test_what_cannot_be_offered_is_refused_in_one_sentence(environment: Environment, variable: str, words: str) -> None:
    done = run_bare(environment, **{variable: "true"})
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("[ERROR] ")
    assert words in line


@pytest.mark.parametrize("versions", ["1", "3,1,2", "", "7", "rubbish"])
def test_protocol_version(environment: Environment, versions: str) -> None:
    from ovms_face_aog.environment import Magic, read_environment

    magic = Magic("KEY", "value", (1,))
    assert read_environment(magic, {"KEY": "value", "PLUGIN_PROTOCOL_VERSIONS": versions}) == 1
    more = Magic("KEY", "value", (1, 2))
    assert read_environment(more, {"KEY": "value", "PLUGIN_PROTOCOL_VERSIONS": "1,2,9"}) == 2


@pytest.mark.needs_posix  # signals
async def test_a_host_that_is_cancelled_before_the_handshake_leaves_no_plugin() -> None:
    host = PluginHost([sys.executable, "-c", "import time; time.sleep(600)"])
    with anyio.move_on_after(1) as start:
        await host.start()
    assert start.cancelled_caught
    assert host.process.returncode == -signal.SIGKILL


# -- what reaches the host's pipes ---------------------------------------------------------------------------------

NOISY = """
import os, subprocess, sys, threading, warnings
class Noisy:
    def __init__(self, section):
        print("1|1|unix|/evil|grpc|")
        os.write(1, b"x" * 100_000 + b"\\n")
        os.write(2, b'{"@level": 5, "@message": [], "@timestamp": 3}\\n')
        warnings.warn("something is old")
        threading.Thread(target=lambda: 1 / 0).start()
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)  # straggler"], start_new_session=True)
"""


async def test_d2_7_nothing_but_the_handshake_on_stdout_and_no_child_holds_the_pipes(
    environment: Environment, tmp_path: Path
) -> None:
    site = Path(str(environment["PYTHONPATH"]))
    info = site / "noisy-1.0.dist-info"
    info.mkdir()
    (site / "noisy.py").write_text(NOISY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ovms.observers]\nnoisy = noisy:Noisy\n")
    async with PluginHost(plugin_command(), environment) as host:
        assert (await host.call("CheckEngine")).code == 0
        stragglers = [
            each
            for each in psutil.Process(host.pid).children(recursive=True)
            if "straggler" in " ".join(each.cmdline())
        ]
        assert len(stragglers) == 1
        try:
            await host.kill()  # raises if a pipe is still held after 2 s
        finally:
            stragglers[0].kill()
    assert host.stdout.count(b"\n") == 1
    assert any("something is old" in line for line in host.stderr)
    assert any('"error"' in line and "ZeroDivisionError" in line for line in host.stderr)
    for line in host.stderr:
        fields = json.loads(line)  # every single line is hclog's, no matter what wrote it
        assert all(isinstance(fields[each], str) for each in ("@level", "@message", "@timestamp"))


async def test_messages_larger_than_grpc_s_own_limit(plugin: PluginHost) -> None:
    body = json.dumps({"model": "x/y", "messages": "a" * (64 << 20)}).encode()
    response = await plugin.call("InvokeService", service_name="chat", request_data=body)
    assert response.code in (400, 412)  # arrived: such messages cannot be, or there is no engine


# -- end -----------------------------------------------------------------------------------------------------------


async def test_d1_9_d2_17_shutdown_stops_the_engine_before_it_answers(plugin: PluginHost, short_path: Path) -> None:
    await install_and_start(plugin)
    [engine] = engines(plugin.pid)
    await plugin.shut_down()
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    async with asyncio.timeout(2):
        assert await plugin.process.wait() == 0
    assert not list(short_path.iterdir())


@pytest.mark.needs_posix  # signals
async def test_two_shutdowns_and_a_signal_at_once_are_one(plugin: PluginHost) -> None:
    await install_and_start(plugin)
    plugin.process.send_signal(signal.SIGTERM)
    await asyncio.gather(plugin.shut_down(), plugin.shut_down(), return_exceptions=True)
    async with asyncio.timeout(3):
        assert await plugin.process.wait() == 0


async def test_shutdown_with_requests_and_sessions_under_way(plugin: PluginHost) -> None:
    forever = asyncio.Event()

    async def audio():
        await forever.wait()
        yield

    session = plugin.converse(audio())
    reading = asyncio.ensure_future(session.read())
    assert await plugin.kill() < 2
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await reading


@pytest.mark.needs_posix  # signals
async def test_a_sigint_of_the_terminal_is_the_host_s_business(plugin: PluginHost) -> None:
    plugin.process.send_signal(signal.SIGINT)
    plugin.process.send_signal(signal.SIGINT)
    assert await plugin.ping()
    assert await plugin.kill() < 2


@pytest.mark.needs_posix  # signals
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
async def test_signals_end_it_with_its_engine(plugin: PluginHost, short_path: Path, name: str) -> None:
    await install_and_start(plugin)
    [engine] = engines(plugin.pid)
    plugin.process.send_signal(signal.Signals[name])
    async with asyncio.timeout(5):
        assert await plugin.process.wait() == 0
    assert await gone(engine)
    assert not list(short_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only there a parent process keeps the socket")
async def test_a_process_that_dies_is_started_again_and_the_host_knows_of_nothing(
    environment: Environment, short_path: Path
) -> None:
    async with PluginHost(plugin_command(), environment) as host:
        await install_and_start(host)
        for _ in range(2):
            [process] = psutil.Process(host.pid).children()
            [engine] = engines(host.pid)
            process.kill()
            assert await gone(process)
            assert await gone(engine)
            # What is asked meanwhile waits; only what was under way then is lost, or sent before its end was noticed.
            with suppress(grpc.aio.AioRpcError):
                await host.ping()
            assert (await host.call("CheckEngine", timeout=10)).installed
            await install_and_start(host)
        assert host.process.returncode is None
        assert len([line for line in host.stderr if "died of signal 9 and is started again" in line]) == 2
        assert await host.kill() < 2
    assert not list(short_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only there a parent process keeps the socket")
async def test_a_process_that_always_dies_is_not_started_for_ever(environment: Environment) -> None:
    async with PluginHost(plugin_command(), environment) as host:
        async with asyncio.timeout(30):
            while host.process.returncode is None:
                with suppress(psutil.NoSuchProcess):
                    for each in psutil.Process(host.pid).children():
                        each.kill()
                await asyncio.sleep(0.05)
        assert 1 <= len([line for line in host.stderr if "is started again" in line]) <= 5


HOST = """
import asyncio, sys
from ovms_face_aog.client import PluginHost, plugin_command
async def main():
    host = PluginHost(plugin_command(), {})
    await host.start()
    for method in ("InstallEngine", "InitEnv", "StartEngine"):
        assert (await host.call(method)).code == 0
    while (await host.call("HealthCheck")).code:
        await asyncio.sleep(0.05)
    print(host.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_the_host_s_death_is_noticed_within_a_second(environment: Environment, short_path: Path) -> None:
    values = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", HOST, env=values, stdout=subprocess.PIPE)
    assert host.stdout
    plugin = psutil.Process(int(await host.stdout.readline()))
    [engine] = engines(plugin.pid)
    host.kill()
    await host.wait()
    assert await gone(plugin, 2.5)  # notices within 1 s, stops the engine, exits
    assert await gone(engine, 1)
    log = (Path(str(environment["OVMS_PLUGIN_DATA_DIR"])) / "logs" / "plugin.log").read_text()
    assert "The plugin ends: the host" in log
    assert not list(short_path.iterdir())


async def test_streams_that_end_without_a_shutdown_mean_that_the_host_is_gone(plugin: PluginHost) -> None:
    assert (await plugin.call("CheckEngine")).code == 0  # the streams were opened before
    await plugin.channel.close()
    async with asyncio.timeout(3):
        assert await plugin.process.wait() == 0
    assert any("closed its streams" in line for line in plugin.stderr)


@pytest.mark.needs_posix  # a Unix socket
async def test_d1_47_a_socket_of_a_killed_plugin_is_removed_by_the_next(
    environment: Environment, short_path: Path
) -> None:
    host = PluginHost(plugin_command(), environment)
    await host.start()
    below = psutil.Process(host.pid).children(recursive=True)
    host.process.kill()
    for each in below:
        each.kill()
    await host.process.wait()
    assert len(list(short_path.iterdir())) == 1
    async with PluginHost(plugin_command(), environment) as following:
        assert await following.ping()
        assert (await following.call("CheckEngine")).code == 0
        await following.kill()
    assert not list(short_path.iterdir())


async def test_a_host_that_reads_no_log_holds_nothing_up(environment: Environment) -> None:
    values = {**os.environ, **AOG, **environment}
    process = subprocess.Popen(
        plugin_command(),
        env={name: value for name, value in values.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    client = ProviderClient()
    network, address = process.stdout.readline().decode().split("|")[2:4]
    client.channel = connect(address if network == "tcp" else f"unix:{address}")
    for _ in range(1000):  # each is logged, and the pipe takes 64 KiB, on Windows 4
        assert (await client.call("LoadModel", request_json=b"[]", timeout=10)).code == 0
    await client.channel.close()
    process.kill()
    assert len(process.communicate()[1]) > (60_000 if os.name == "posix" else 3_000), "it was full"


async def test_what_is_no_plugin_is_told(tmp_path: Path) -> None:
    with pytest.raises(PluginFailed, match="no handshake"):
        async with PluginHost([sys.executable, "-c", "print('hello')"]):
            pass


async def test_d1_1_the_manifest_is_found_from_the_launcher_and_not_from_the_working_directory(tmp_path: Path) -> None:
    from ovms_face_aog.process import data_dir_of, passed_by, read_manifest

    folder = tmp_path / "plugins" / "ovms-plugin"
    launcher = folder / "bin" / "linux-amd64" / "ovms-plugin"
    launcher.parent.mkdir(parents=True)
    services = (
        "services:\n- {service_name: chat, config_ref: 'openai:chat'}\n- {service_name: embed, config_ref: 'aog:embed'}"
    )
    (folder / "plugin.yaml").write_text(f"resources:\n  data_dir: ${{AOG_DATA_DIR}}/somewhere\n{services}\n")
    manifest = read_manifest(launcher)
    assert data_dir_of(manifest, {"AOG_DATA_DIR": "/data"}) == "/data/somewhere"
    assert data_dir_of(manifest, {}) == ""  # AOG sets none, and half a path must not be used
    assert passed_by(manifest) == {"embed"}
    assert read_manifest(tmp_path / "elsewhere" / "ovms-plugin") == {}
    for broken in ("resources: [broken", "[]", "resources: 5\nservices: 5", "services: [5]"):
        (folder / "plugin.yaml").write_text(broken)
        assert data_dir_of(read_manifest(launcher), {}) == ""
        assert passed_by(read_manifest(launcher)) == frozenset()

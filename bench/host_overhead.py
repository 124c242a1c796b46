"""What a host gets of the plugin, measured with go-plugin's own library: start, rest, calls, streams, memory.

    python bench/host_overhead.py                                    everything but `run`
    python bench/host_overhead.py start ready calls streams memory run
    python bench/host_overhead.py memory --calls 100000              as many as the target says, which takes minutes
    OVMS_GO_PLUGIN=FOLDER python bench/host_overhead.py calls streams

`run` is `dev.py run` in this environment, so not the first one. OVMS_GO_PLUGIN is the folder of the source of AOG's own
plugin in Go (plugin-example/ovms-plugin in AOG's repository): it is built and measured in the same run, with the same
host and engine, and ours is shown as a share of it.

The engine answers at once (``_quick_engine.py``), so what is left is ours and that of gRPC. "floor" is a plugin whose
rpc does nothing (``_null_plugin.py``). `aog` is measured with the quirks for AOG, `other` as a host without them. The
time of the plugin's own process is shown as well, as it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from _smoke import sized

from ovms_face_aog.client import plugin_command
from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent
GO = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
CALLS, CALLERS, CHUNKS = sized((3000, 32, 200), (20, 2, 20))
STREAMS = sized(320, 2)
ANSWER_CHUNKS = 200
"""Events in an answer of the engine."""
EARLY = sized(1000, 10)
"""Calls after which memory is looked at first."""
MEASURES = ["start", "ready", "calls", "streams", "memory"]
PLATFORM = f"""
import sys
from ovms_kernel.testing.platform import MisbehavingPlatform
class Quick(MisbehavingPlatform):
    def __init__(self, section):
        super().__init__(section)
        self.program = (sys.executable, {str(HERE / "_quick_engine.py")!r})
"""
BODY = json.dumps({"model": "bench/chat", "messages": [{"role": "user", "content": "hello"}]}).encode()
STREAM = json.dumps({"model": "bench/chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a host gets of the plugin.")
    parser.add_argument("wanted", nargs="*", choices=[[], *MEASURES, "run"], metavar="|".join([*MEASURES, "run"]))
    parser.add_argument("--calls", type=int, default=sized(20_000, 50), help="how many for `memory`")
    options = parser.parse_args()
    wanted = options.wanted or MEASURES
    if GO is None:
        sys.exit("This is measured through a host in Go, and there is no `go` on this machine.")
    with tempfile.TemporaryDirectory(prefix="ovms-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        program = folder / "host"
        subprocess.run([GO, "build", "-o", program, "."], cwd=ROOT / "tests" / "hosts" / "go", check=True)
        environment = prepare(folder)
        if "start" in wanted:
            measure_start(program, environment)
        if "ready" in wanted:
            measure_ready(program, environment, folder / "data")
        if {"calls", "streams", "memory"} & set(wanted):
            measure_all(program, environment, folder, wanted, options.calls)
    if "run" in wanted:
        measure_run()


def install_platform(site: Path) -> Path:
    """Write the distribution of a platform whose engine is the quick one, and return the folder for ``sys.path``."""
    info = site / "quick-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "quick.py").write_text(PLATFORM)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quick\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ovms.platforms]\nquick = quick:Quick\n")
    return site


def prepare(folder: Path) -> dict[str, str]:
    """Make a data folder with a tiny model and an environment in which the quick engine is a platform."""
    site = install_platform(folder / "site")
    data = folder / "data"

    async def take_in() -> None:
        async with compose_kernel(read_settings({}, data_dir=data)) as kernel:
            await kernel.import_model(ROOT / "tests" / "fixtures" / "text_generation", "bench/chat")

    asyncio.run(take_in())
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVMS_PLUGIN_", "PLUGIN_"))}
    ours = {"OVMS_PLUGIN_DATA_DIR": str(data), "OVMS_PLUGIN_PLATFORM": "quick", "PYTHONPATH": str(site)}
    return kept | ours | {"TMPDIR": str(folder), "OVMS_PLUGIN_LOG_LEVEL": "WARNING"}


def measure_all(program: Path, environment: dict[str, str], folder: Path, wanted: list[str], calls: int) -> None:
    """Measure calls, streams and memory: the floor, AOG's own plugin if its source is there, and ours."""
    base: Figures | None = None
    if "calls" in wanted:
        with Host(program, environment, [sys.executable, str(HERE / "_null_plugin.py")]) as plugin:
            measure_calls(plugin, "floor", None)
    if source := os.environ.get("OVMS_GO_PLUGIN"):
        with (
            go_plugin(Path(source), folder / "go") as (executable, more),
            Host(program, environment | more, [executable]) as plugin,
        ):
            base = measure(plugin, "go", wanted, None)
    for name, before in (("aog", []), ("other", ["/usr/bin/env", "-u", "AOG_VERSION"])):
        with Host(program, environment, [*before, *plugin_command()]) as plugin:
            plugin.ready()
            if "memory" in wanted and name == "aog":  # before other calls, as it counts from the first
                measure_memory(plugin, calls)
            measure(plugin, name, wanted, base)


def measure(plugin: Host, name: str, wanted: list[str], base: Figures | None) -> Figures:
    found = Figures()
    if "calls" in wanted:
        found.p50, found.rate = measure_calls(plugin, name, base)
    if "streams" in wanted:
        found.chunks = measure_streams(plugin, name, base)
    return found


@dataclass
class Figures:
    """What is compared with AOG's own plugin."""

    p50: float = 0.0
    rate: float = 0.0
    chunks: float = 0.0


@contextmanager
def go_plugin(source: Path, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Build AOG's own plugin and run an engine for it; give its executable and its environment."""
    (folder / "bin").mkdir(parents=True)
    executable = folder / "bin" / "ovms-plugin"
    subprocess.run([str(GO), "build", "-o", executable, "."], cwd=source, check=True)
    shutil.copy(source / "plugin.yaml", folder)
    engine = subprocess.Popen(
        [sys.executable, HERE / "_services_engine.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert engine.stdout
    port = engine.stdout.readline().decode().strip()
    try:
        yield str(executable), {"OVMS_HOST": "127.0.0.1", "OVMS_HTTP_PORT": port, "AOG_DATA_DIR": str(folder / "data")}
    finally:
        engine.communicate()


class Host:
    """The host in Go with one plugin; steps go in and results come out line by line."""

    def __init__(self, program: Path, environment: dict[str, str], command: list[str] | None = None) -> None:
        self.process = subprocess.Popen(
            [str(program), *(command or plugin_command())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.start = self._read()
        self.parent = psutil.Process(self.start["pid"])
        # On Linux a small parent process keeps the socket, and its child is the plugin.
        self.plugin = next(iter(self.parent.children()), self.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()

    def do(self, call: str, request: dict[str, Any] | None = None, **more: int) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"call": call, "requests": [request or {}], **more}).encode() + b"\n")
        self.process.stdin.flush()
        result = self._read()
        assert not result.get("error"), result
        return result

    def ready(self) -> None:
        """Install and start the engine and load the model."""
        for call in ("InstallEngine", "InitEnv", "StartEngine"):
            self.do(call)
        while self.do("HealthCheck")["responses"][0].get("code", 0):
            time.sleep(0.05)
        self.do("LoadModel", {"request_json": coded(b'{"model":"bench/chat"}')})
        answer = self.do("InvokeService", invocation(BODY))["responses"][0]
        assert not answer.get("code"), answer

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        result: dict[str, Any] = json.loads(self.process.stdout.readline())
        return result


def coded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def invocation(body: bytes) -> dict[str, Any]:
    return {"service_name": "chat", "request_data": coded(body)}


def measure_start(program: Path, environment: dict[str, str]) -> None:
    seconds, rests = [], []
    for _ in range(sized(7, 1)):
        with Host(program, dict(environment)) as host:
            seconds.append(host.start["seconds"])
            host.do("CheckEngine")
            rests.append(sum(resident(each) for each in {host.parent, host.plugin}))
    show("exec to handshake and connection", f"{statistics.median(seconds) * 1000:.0f} ms", "at most 200 ms")
    for module, aim in (("ovms_kernel", "at most 60 ms"), ("ovms_kernel.services", "")):
        code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(sized(7, 1))
        ]
        show(f"import {module}", f"{statistics.median(float(each.stdout) for each in runs) * 1000:.1f} ms", aim)
    show("plugin at rest", f"{statistics.median(rests) / 1e6:.0f} MB resident", "at most 55 MB")


def resident(process: psutil.Process) -> int:
    """Return the bytes in memory, with those that it shares counted in part where the system tells."""
    found = process.memory_full_info()
    return int(getattr(found, "pss", 0) or found.rss)


def measure_ready(program: Path, environment: dict[str, str], data: Path) -> None:
    """Compare when the engine's ports were open, by its own note of it, with when HealthCheck first said so."""
    late = []
    with Host(program, dict(environment)) as host:
        host.ready()
        for _ in range(sized(7, 1)):
            host.do("StopEngine")
            host.do("StartEngine")
            while host.do("HealthCheck")["responses"][0].get("code", 0):
                pass
            late.append(time.time() - float(next(data.rglob("quick-engine-ready")).read_text()))
    show("engine ready seen", f"{statistics.median(late) * 1000:.0f} ms after it was", "at most 50 ms")


def measure_run() -> None:
    began = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "dev.py", "run"], check=True, capture_output=True)
    show("dev.py run, not the first", f"{time.perf_counter() - began:.1f} s", "at most 15 s")


def measure_calls(host: Host, name: str, base: Figures | None) -> tuple[float, float]:
    host.do("InvokeService", invocation(BODY), count=sized(500, 5))
    before = cpu(host)
    through = host.do("InvokeService", invocation(BODY), count=CALLS)
    ours = f"{(cpu(host) - before) / CALLS * 1e6:.0f} us of its process each"
    p50 = through["p50"]
    ratio = f"{p50 / base.p50:.2f} x go, at most 1.6" if base else ""
    show(f"unary call ({name})", f"{p50 * 1000:.2f} ms p50", ratio, ours)
    before = cpu(host)
    many = host.do("InvokeService", invocation(BODY), count=CALLS * 4, parallel=CALLERS)
    ours = f"{(cpu(host) - before) / (CALLS * 4) * 1e6:.0f} us of its process each, at most 350"
    rate = CALLS * 4 / many["seconds"]
    ratio = f"{rate / base.rate:.2f} x go, at least 0.7" if base else ""
    show(f"{CALLERS} callers ({name})", f"{rate:.0f} requests/s", ratio, ours)
    return p50, rate


def measure_streams(host: Host, name: str, base: Figures | None) -> float:
    host.do("InvokeServiceStream", invocation(STREAM), count=sized(20, 2))
    before = cpu(host)
    one = host.do("InvokeServiceStream", invocation(STREAM), count=sized(100, 4))
    ours = f"{(cpu(host) - before) / one['events'] * 1e6:.1f} us of its process each"
    show(f"stream of {CHUNKS} ({name})", f"{one['events'] / one['seconds']:.0f} chunks/s", "", ours)
    show(f"first chunk ({name})", f"{one['first'] * 1000:.2f} ms")
    many = host.do("InvokeServiceStream", invocation(STREAM), count=STREAMS, parallel=CALLERS)
    lost = max(0.0, 1 - many["events"] / (STREAMS * ANSWER_CHUNKS))
    chunks: float = many["events"] / many["seconds"]
    ratio = f"{chunks / base.chunks:.2f} x go, at least 1" if base else ""
    show(f"{CALLERS} streams at once ({name})", f"{chunks:.0f} chunks/s", ratio, f"{lost:.1%} lost")
    return chunks


def cpu(host: Host) -> float:
    """Return the seconds that the plugin's process has computed."""
    times = host.plugin.cpu_times()
    return times.user + times.system


def measure_memory(host: Host, calls: int) -> None:
    host.do("InvokeService", invocation(BODY), count=EARLY, parallel=CALLERS)
    early = host.plugin.memory_info().rss
    host.do("InvokeService", invocation(BODY), count=calls - EARLY, parallel=CALLERS)
    grown = host.plugin.memory_info().rss - early
    show(f"memory, {EARLY} to {calls} calls", f"{grown / 1e6:+.1f} MB", "at most 10 MB", f"from {early / 1e6:.0f} MB")


def show(what: str, value: str, aim: str = "", more: str = "") -> None:
    print(f"{what:<36} {value:>26}   {aim:<24} {more}".rstrip(), flush=True)


if __name__ == "__main__":
    main()

"""What an HTTP face adds to an engine that answers at once: ours, LiteLLM's proxy and llama-swap, in one run.

LiteLLM's proxy is installed from PyPI into a temporary folder; llama-swap is taken from PATH, else built by Go from its
module. "Added" is against the engine asked directly by the same client. CPU is that of the face's process and of those
that it started, which depends less on what else the machine does than times do. At the end, idle connections and open
streams are held while good requests are sent. As a smoke test it measures ours alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from _smoke import SMOKE, sized

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
CALLS, STREAMS = sized((1500, 100), (20, 4))
CHUNKS = 200
"""Pieces of the stub's streamed answer."""
MOST_CPU, MOST_CHUNK_CPU, MOST_MEMORY = 400e-6, 6e-6, 90 << 20
MESSAGES = [{"role": "user", "content": "What is OpenVINO?"}]
LITELLM = "litellm[proxy]>=1.80"
SWAP = "github.com/mostlygeek/llama-swap"
SWAP_VERSIONS = ("latest", "main")
IDLE, OPEN, HELD = sized((1000, 300, 60.0), (100, 30, 1.0))
"""Idle connections and open streams, and seconds for which they are held."""
MANY = 1000
"""Requests at once that llama-swap may accept, of which it refuses more than ten otherwise."""
START_LIMIT = 300.0
"""Seconds until something listens; LiteLLM imports thousands of modules first."""


@dataclass
class Target:
    """Something that answers chat completions."""

    name: str
    port: int
    path: str = "/v1/chat/completions"
    key: str = ""
    pid: int = 0
    model: str = "text_generation"

    def request(self, *, stream: bool, slow: bool = False) -> bytes:
        fields: dict[str, Any] = {"model": self.model, "messages": MESSAGES} | ({"stream": True} if stream else {})
        fields |= {"user": "slow"} if slow else {}
        body = json.dumps(fields, separators=(",", ":")).encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def processes(self) -> list[psutil.Process]:
        """Its process and those that it started."""
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of CPU."""
        return sum(sum(each.cpu_times()[:2]) for each in self.processes())

    def memory(self) -> float:
        """Megabytes."""
        return sum(each.memory_info().rss for each in self.processes()) / 1e6


@dataclass
class Measured:
    rate: float
    median: float
    cpu: float
    chunks: float = 0.0
    chunk_cpu: float = 0.0


async def measure(target: Target, callers: int, *, stream: bool, share: int = 1) -> Measured:
    """Ask from so many callers at once and count everything."""
    request = target.request(stream=stream)
    count = max((STREAMS if stream else CALLS) // share, callers)
    left = iter(range(count))
    times: list[float] = []
    pieces = 0

    async def caller() -> None:
        nonlocal pieces
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=1 << 22)
        for _ in left:
            began = time.perf_counter()
            writer.write(request)
            found = await answer(reader, target.name)
            pieces += found
            times.append(time.perf_counter() - began)
        writer.close()

    before, began = target.cpu(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    seconds, cpu = time.perf_counter() - began, target.cpu() - before
    if stream and pieces != count * (CHUNKS + 1):
        print(f"  {target.name}: {count * (CHUNKS + 1) - pieces} chunks of {count * (CHUNKS + 1)} are lost")
    made = Measured(count / seconds, statistics.median(times), cpu / count)
    if stream:
        made.chunks, made.chunk_cpu = pieces / seconds, cpu / max(pieces, 1)
    return made


async def answer(reader: asyncio.StreamReader, name: str) -> int:
    """Read one answer and return the number of events in it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"{name} refused: {head!r} {await reader.read(500)!r}")
    if b"content-length:" in head:
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
        return 0
    events = 0
    while size := int((await reader.readline()).strip(), 16):
        events += (await reader.readexactly(size + 2)).count(b"data:")
    await reader.readexactly(2)
    return events


@contextmanager
def process(name: str, words: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401 - Popen's
    with subprocess.Popen(words, **more) as made:
        try:
            yield made
        finally:
            if made.stdin:
                made.stdin.close()
            made.terminate()
            try:
                made.wait(10)
            except subprocess.TimeoutExpired:
                print(f"{name} does not end")
                made.kill()


@contextmanager
def engine() -> Iterator[Target]:
    words = [sys.executable, str(HERE / "_services_engine.py")]
    with process("the engine", words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        assert made.stdout
        port = int(made.stdout.readline())
        yield Target("engine", port, "/v3/chat/completions", pid=made.pid)


@contextmanager
def ours(engine_at: Target, folder: Path) -> Iterator[Target]:
    words = [sys.executable, str(HERE / "_http_server.py"), f"http://127.0.0.1:{engine_at.port}", str(folder)]
    with process("ours", words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        assert made.stdout
        port = int(made.stdout.readline())
        yield Target("ours", port, key=(folder / "http" / "key").read_text().strip(), pid=made.pid)


@contextmanager
def litellm(engine_at: Target, folder: Path) -> Iterator[Target | None]:
    """LiteLLM's proxy in an environment of its own."""
    environment = folder / "litellm"
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not ran([uv, "venv", "--quiet", str(environment)], "LiteLLM's environment") or not ran(
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), LITELLM], "LiteLLM's proxy"
    ):
        yield None
        return
    served = {"model": "openai/text_generation", "api_base": f"http://127.0.0.1:{engine_at.port}/v3", "api_key": "x"}
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "text_generation", "litellm_params": served}]}))
    port = free_port()
    words = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    key = "sk-bench"  # it does not start without one
    quiet = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": key}
    with process("LiteLLM", words, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as made:
        yield Target("LiteLLM", port, key=key, pid=made.pid) if answers(port, made, "LiteLLM") else None


@contextmanager
def llama_swap(engine_at: Target, folder: Path) -> Iterator[Target | None]:
    """llama-swap, which takes the engine for a program that it has started."""
    program = shutil.which("llama-swap") or built_swap(folder)
    if program is None:
        yield None
        return
    config = folder / "swap.yaml"
    served_at = f"http://127.0.0.1:{engine_at.port}"
    model = {"cmd": "sleep 100000", "proxy": served_at, "checkEndpoint": "none", "concurrencyLimit": MANY}
    config.write_text(json.dumps({"models": {"text_generation": model}}))
    port = free_port()
    words = [program, "--config", str(config), "--listen", f"127.0.0.1:{port}"]
    with process("llama-swap", words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as made:
        yield Target("llama-swap", port, pid=made.pid) if answers(port, made, "llama-swap") else None


def built_swap(folder: Path) -> str | None:
    go = shutil.which("go")
    if go is None:
        print("llama-swap is left out: it is not on PATH, and neither is go, which would build it")
        return None
    environment = os.environ | {"GOBIN": str(folder), "GOPATH": str(folder / "go"), "GOFLAGS": "-modcacherw"}
    for version in SWAP_VERSIONS:
        if ran([go, "install", f"{SWAP}@{version}"], f"llama-swap {version}", env=environment):
            return str(folder / "llama-swap")
    return None


def ran(words: list[str], what: str, **more: Any) -> bool:  # noqa: ANN401 - run's
    """Run a command and say why it failed, if it did."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, **more)
    if done.returncode:
        print(f"{what} is left out: {' '.join(done.stderr.split())[-300:]}")
    return not done.returncode


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int, made: subprocess.Popen[bytes], name: str) -> bool:
    """Wait until something listens."""
    import socket

    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and made.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    cause = f"it ended with {made.returncode}" if made.returncode is not None else "it does not listen"
    print(f"{name} is left out: {cause}")
    return False


def tell(target: Target, name: str, made: Measured, direct: Measured) -> None:
    added = (made.median - direct.median) * 1e3
    print(
        f"  {target.name:<11} {name:<22} {made.rate:8.0f} requests/s   added p50 {added:7.2f} ms   "
        f"CPU {made.cpu * 1e6:7.0f} µs/request"
        + (f"   {made.chunks:8.0f} chunks/s, {made.chunk_cpu * 1e6:5.1f} µs each" if made.chunks else "")
    )


async def compare(targets: list[Target]) -> dict[tuple[str, int, bool], Measured]:
    found: dict[tuple[str, int, bool], Measured] = {}
    for stream in (False, True):
        for callers in (1, 32):
            name = f"{'stream' if stream else 'plain'}, {callers} caller{'s' if callers > 1 else ''}"
            for target in targets:
                await measure(target, callers, stream=stream, share=10)  # so that all is imported and compiled
                made = found[target.name, callers, stream] = await measure(target, callers, stream=stream)
                tell(target, name, made, found["engine", callers, stream])
    return found


@dataclass
class Held:
    refused: int
    slowest: float
    """Milliseconds that a good request took meanwhile."""
    before: float
    after: float
    """Memory in megabytes."""


async def hold(target: Target) -> Held:
    """Keep connections idle and streams open, and send good requests beside them."""
    plain, stream = target.request(stream=False), target.request(stream=True, slow=True)
    stack: list[asyncio.StreamWriter] = []

    async def connect(request: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=1 << 22)
        stack.append(writer)
        writer.write(request)
        return reader

    async def first_line(request: bytes) -> bool:
        return b" 200 " in await (await connect(request)).readline()

    async def connections() -> int:
        good = [await first_line(plain) for _ in range(IDLE)]
        return good.count(False) + (await asyncio.gather(*(first_line(stream) for _ in range(OPEN)))).count(False)

    refused, slowest, before = await connections(), 0.0, target.memory()
    end = time.monotonic() + HELD
    while time.monotonic() < end:
        began = time.perf_counter()
        reader = await connect(plain)
        refused += b" 200 " not in await reader.readline()
        slowest = max(slowest, (time.perf_counter() - began) * 1e3)
        stack.pop().close()
        await asyncio.sleep(0.1)
    held = Held(refused, slowest, before, target.memory())
    for writer in stack:
        writer.close()
    return held


def allow_open_files() -> None:
    """Raise the limit of open files, which the processes that are started take over, as far as the system lets us."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    allow_open_files()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        direct = stack.enter_context(engine())
        here = stack.enter_context(ours(direct, folder / "data"))
        targets = [direct, here]
        if not SMOKE:
            others = [stack.enter_context(other(direct, folder)) for other in (llama_swap, litellm)]
            targets += [each for each in others if each]
        rest = {each.name: each.memory() for each in targets}
        measured = asyncio.run(compare(targets))
        busy = here.memory()
        held = asyncio.run(hold(here))
    plain, streamed = measured["ours", 32, False], measured["ours", 32, True]
    print(f"  memory at rest {rest['ours']:.0f} MB (at most {MOST_MEMORY / 1e6:.0f}), after all this {busy:.0f} MB")
    print(f"  CPU per request {plain.cpu * 1e6:.0f} µs (at most {MOST_CPU * 1e6:.0f})")
    print(f"  CPU per chunk {streamed.chunk_cpu * 1e6:.1f} µs (at most {MOST_CHUNK_CPU * 1e6:.0f})")
    print(
        f"  {IDLE} idle connections and {OPEN} open streams for {HELD:.0f} s: {held.refused} good requests refused, "
        f"the slowest took {held.slowest:.0f} ms; memory {held.before:.0f} MB, then {held.after:.0f} MB"
    )
    for name, least in (("LiteLLM", 5.0), ("llama-swap", 0.5)):
        if name in rest:
            ahead(measured, name, least, rest[name])


def ahead(measured: dict[tuple[str, int, bool], Measured], name: str, least: float, memory: float) -> None:
    """Print how far ours is ahead of another."""
    rates = [measured["ours", 32, each].rate / measured[name, 32, each].rate for each in (False, True)]
    direct = measured["engine", 1, False].median
    added = (measured[name, 1, False].median - direct) / (measured["ours", 1, False].median - direct)
    print(
        f"  against {name}: requests/s of 32 callers {rates[0]:.2f} times, streams {rates[1]:.2f} times "
        f"(at least {least}); its added p50 of 1 caller is {added:.1f} times ours; it takes {memory:.0f} MB"
    )


if __name__ == "__main__":
    main()

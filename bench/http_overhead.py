"""What an HTTP face adds to an engine that answers at once: ours, LiteLLM's proxy and llama-swap, in one run.

    python bench/http_overhead.py            ours, and the others where they can be installed
    python bench/http_overhead.py smoke      ours alone, few requests

"Added" is against the engine asked directly by the same client. CPU is that of the face's process, which depends less
on what else the machine does than times do.
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

import platformdirs
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SMOKE = "smoke" in sys.argv
CALLS, STREAMS = (200, 20) if SMOKE else (1500, 100)
CHUNKS = 200
"""Pieces of the stub's streamed answer."""
MOST_CPU, MOST_CHUNK_CPU, MOST_MEMORY = 400e-6, 6e-6, 90 << 20
MESSAGES = [{"role": "user", "content": "What is OpenVINO?"}]
LITELLM = "litellm[proxy]>=1.80"
SWAP = "github.com/mostlygeek/llama-swap@latest"


@dataclass
class Target:
    """Something that answers chat completions."""

    name: str
    port: int
    path: str = "/v1/chat/completions"
    key: str = ""
    pid: int = 0
    model: str = "text_generation"

    def request(self, *, stream: bool) -> bytes:
        fields: dict[str, Any] = {"model": self.model, "messages": MESSAGES} | ({"stream": True} if stream else {})
        body = json.dumps(fields, separators=(",", ":")).encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def cpu(self) -> float:
        """Seconds of CPU of its process and of those that it started."""
        if not self.pid:
            return 0.0
        process = psutil.Process(self.pid)
        return sum(sum(each.cpu_times()[:2]) for each in [process, *process.children(recursive=True)])


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
    """LiteLLM's proxy in an environment of its own, kept in the user's cache."""
    environment = platformdirs.user_cache_path("ovms-plugin-tests") / "litellm"
    program = environment / "bin" / "litellm"
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not program.exists():
        subprocess.run([uv, "venv", "--quiet", "--clear", str(environment)], check=False)
        done = subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), LITELLM], check=False
        )
        if done.returncode:
            print("LiteLLM's proxy cannot be installed; it is left out")
            yield None
            return
    served = {"model": "openai/text_generation", "api_base": f"http://127.0.0.1:{engine_at.port}/v3", "api_key": "x"}
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "text_generation", "litellm_params": served}]}))
    port = free_port()
    words = [str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    quiet = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with process("LiteLLM", words, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as made:
        yield Target("LiteLLM", port, pid=made.pid) if answers(port, made) else None


@contextmanager
def llama_swap(engine_at: Target, folder: Path) -> Iterator[Target | None]:
    """llama-swap from the Go module proxy, built once and kept in the user's cache."""
    kept = platformdirs.user_cache_path("ovms-plugin-tests") / "go"
    program = kept / "llama-swap"
    go = shutil.which("go")
    if not program.exists():
        kept.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([go, "install", SWAP], env=os.environ | {"GOBIN": str(kept)}, check=False) if go else None
        if not done or done.returncode:
            print("llama-swap cannot be installed; it is left out")
            yield None
            return
    config = folder / "swap.yaml"
    model = {"cmd": "sleep 100000", "proxy": f"http://127.0.0.1:{engine_at.port}", "checkEndpoint": "none"}
    config.write_text(json.dumps({"models": {"text_generation": model}}))
    port = free_port()
    words = [str(program), "--config", str(config), "--listen", f"127.0.0.1:{port}"]
    with process("llama-swap", words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as made:
        yield Target("llama-swap", port, pid=made.pid) if answers(port, made) else None


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int, made: subprocess.Popen[bytes]) -> bool:
    """Wait until something listens."""
    import socket

    end = time.monotonic() + 90
    while time.monotonic() < end and made.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
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


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        direct = stack.enter_context(engine())
        here = stack.enter_context(ours(direct, folder / "data"))
        memory = psutil.Process(here.pid).memory_info().rss
        targets = [direct, here]
        if not SMOKE:
            others = [stack.enter_context(other(direct, folder)) for other in (llama_swap, litellm)]
            targets += [each for each in others if each]
        measured = asyncio.run(compare(targets))
        after = psutil.Process(here.pid).memory_info().rss
    plain, streamed = measured["ours", 32, False], measured["ours", 32, True]
    print(
        f"  memory at rest {memory / 1e6:.0f} MB (at most {MOST_MEMORY / 1e6:.0f}), after all this {after / 1e6:.0f} MB"
    )
    print(f"  CPU per request {plain.cpu * 1e6:.0f} µs (at most {MOST_CPU * 1e6:.0f})")
    print(f"  CPU per chunk {streamed.chunk_cpu * 1e6:.1f} µs (at most {MOST_CHUNK_CPU * 1e6:.0f})")
    for name, least in (("LiteLLM", 5.0), ("llama-swap", 0.5)):
        if (name, 32, False) in measured:
            ratios = [measured["ours", 32, each].rate / measured[name, 32, each].rate for each in (False, True)]
            print(f"  requests/s against {name}: plain {ratios[0]:.2f}, streams {ratios[1]:.2f} (at least {least})")


if __name__ == "__main__":
    main()

"""What the plugin adds to a call of each service, against the engine asked directly; the engine answers at once.

    python bench/services_overhead.py               everything
    python bench/services_overhead.py transports    httpx's transport against ours (and httpx-aiohttp, if it is there)
    python bench/services_overhead.py unary stream live

"Directly" is a bare socket that writes a ready request and reads the answer: the least that any client can do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from _smoke import sized
from host_overhead import install_platform

from ovms_kernel.compose import compose_kernel
from ovms_kernel.engine.transport import EngineTransport
from ovms_kernel.settings import read_settings
from ovms_kernel.values import Endpoint, Message, Request

if TYPE_CHECKING:
    from ovms_kernel.kernel import Kernel

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "tests" / "fixtures" / "speech_to_text_samples"
CALLS, CALLERS, STREAMS, CHUNKS = sized((800, 32, 50, 201), (16, 2, 1, 201))
KINDS = ("text_generation", "embeddings", "rerank", "image_generation", "speech_to_text", "text_to_speech")
MESSAGES = [{"role": "user", "content": "What is OpenVINO?"}]
AUDIO = base64.b64encode((SAMPLES / "en_turn_on_the_light.wav").read_bytes()).decode()
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v3/chat/completions", {"model": "bench/text_generation", "messages": MESSAGES}),
    "generate": ("/v3/completions", {"model": "bench/text_generation", "prompt": "Once upon a time"}),
    "embed": ("/v3/embeddings", {"model": "bench/embeddings", "input": ["a cat", "a dog"]}),
    "rerank": ("/v3/rerank", {"model": "bench/rerank", "query": "q", "documents": ["a", "b"]}),
    "text-to-image": (
        "/v3/images/generations",
        {"model": "bench/image_generation", "prompt": "a fox", "size": "64x64"},
    ),
    "speech-to-text": ("/v3/audio/transcriptions", {"model": "bench/speech_to_text", "audio": AUDIO}),
    "text-to-speech": (
        "/v3/audio/speech",
        {"model": "bench/text_to_speech", "text": "Hello.", "response_format": "wav"},
    ),
}

Ask = Callable[[], Awaitable[object]]


@contextmanager
def engine() -> Iterator[Endpoint]:
    command = [sys.executable, str(HERE / "_services_engine.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        yield Endpoint(f"http://127.0.0.1:{process.stdout.readline().decode().strip()}", "")
        process.stdin.close()


@asynccontextmanager
async def kernel() -> AsyncIterator[Kernel]:
    """The kernel with every installed service, the quick engine as its platform, and a tiny model of each kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, str(install_platform(folder / "site")))
        try:
            settings = read_settings({}, data_dir=folder / "data", platform="quick")
            async with compose_kernel(settings) as house:
                await house.install_engine()
                for kind in KINDS:
                    await house.import_model(SAMPLES.parent / kind, f"bench/{kind}")
                yield house
        finally:
            del sys.path[0]


class Direct:
    """A bare connection."""

    async def connect(self, endpoint: Endpoint) -> Direct:
        host, _, port = endpoint.rest.removeprefix("http://").partition(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        return self

    async def ask(self, request: bytes) -> None:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await self.reader.readexactly(length)

    async def stream(self, request: bytes) -> AsyncIterator[bytes]:
        self.writer.write(request)
        await self.reader.readuntil(b"\r\n\r\n")
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            rest = (rest + (part := await self.reader.read(1 << 16)))[-16:]
            yield part


def request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def typical(ask: Ask) -> float:
    """Median seconds of one call after the other."""
    for _ in range(50):
        await ask()
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await ask()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def rate(ask: Ask) -> float:
    """Calls in a second with all callers at once."""

    async def caller() -> None:
        for _ in range(CALLS // 8):
            await ask()

    await caller()
    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return CALLERS * (CALLS // 8) / (time.perf_counter() - began)


async def transports(endpoint: Endpoint) -> None:
    offered: dict[str, Callable[[], httpx.AsyncBaseTransport]] = {
        "httpx": httpx.AsyncHTTPTransport,
        "ours": EngineTransport,
    }
    try:
        from httpx_aiohttp import AiohttpTransport

        offered["httpx-aiohttp"] = AiohttpTransport
    except ImportError:
        pass
    print(f"{'transport':16} {'p50 ms':>8} {'calls/s':>9} {'chunks/s':>10}   ({CALLERS} callers, {CHUNKS} chunks)")
    path, body = BODIES["chat"]
    data, streamed = json.dumps(body).encode(), json.dumps(body | {"stream": True}).encode()
    for name, make in offered.items():
        async with httpx.AsyncClient(base_url=endpoint.rest, transport=make(), timeout=None, trust_env=False) as client:

            async def ask(client: httpx.AsyncClient = client) -> None:
                await client.post(path, content=data)

            p50, per_second = await typical(ask), await rate(ask)
            began, count = time.perf_counter(), 0
            for _ in range(STREAMS):
                async with client.stream("POST", path, content=streamed) as response:
                    async for part in response.aiter_raw():
                        count += part.count(b"\n\n")
            chunks = count / (time.perf_counter() - began)
        print(f"{name:16} {p50 * 1e3:8.3f} {per_second:9.0f} {chunks:10.0f}")


async def unary(endpoint: Endpoint) -> None:
    print(f"\n{'service':16} {'direct ms':>10} {'plugin ms':>10} {'added ms':>9} {'calls/s':>9}   ({CALLERS} callers)")
    async with kernel() as house:
        for service, (path, body) in BODIES.items():
            direct, data = await Direct().connect(endpoint), json.dumps(body).encode()
            sent = request(path, body)

            async def straight(direct: Direct = direct, sent: bytes = sent) -> None:
                await direct.ask(sent)

            plain = await typical(straight)

            async def through(service: str = service, data: bytes = data) -> None:
                await house.invoke(service, Request(data))

            ours, per_second = await typical(through), await rate(through)
            direct.writer.close()
            print(f"{service:16} {plain * 1e3:10.3f} {ours * 1e3:10.3f} {(ours - plain) * 1e3:9.3f} {per_second:9.0f}")


async def stream(endpoint: Endpoint) -> None:
    async with kernel() as house:
        print(f"\n{'stream':16} {'chunks/s':>10} {'first later, ms':>16} {'added per chunk, us':>20}")
        for service in ("chat", "generate"):
            path, body = BODIES[service]
            data, direct = json.dumps(body).encode(), await Direct().connect(endpoint)
            firsts: dict[str, list[float]] = {"direct": [], "plugin": []}
            totals: dict[str, list[float]] = {"direct": [], "plugin": []}
            for number in range(STREAMS + 5):
                for name in ("direct", "plugin"):
                    began = time.perf_counter()
                    parts = (
                        direct.stream(request(path, body | {"stream": True}))
                        if name == "direct"
                        else house.stream(service, Request(data))
                    )
                    first = 0.0
                    async for _ in parts:
                        first = first or time.perf_counter() - began
                    if number >= 5:
                        firsts[name].append(first)
                        totals[name].append(time.perf_counter() - began)
            direct.writer.close()
            middle = {name: statistics.median(each) for name, each in totals.items()}
            later = statistics.median(firsts["plugin"]) - statistics.median(firsts["direct"])
            added = (middle["plugin"] - middle["direct"]) / CHUNKS
            print(f"{service:16} {CHUNKS / middle['plugin']:10.0f} {later * 1e3:16.3f} {added * 1e6:20.1f}")


async def live(_: Endpoint) -> None:
    """First partial text after speech begins, and how many sessions one core keeps up with."""
    with wave.open(str(SAMPLES / "en_turn_on_the_light.wav")) as file:
        speech = file.readframes(file.getnframes())
    frame, begins = 640, 0.3

    async with kernel() as house:

        async def session(sound: bytes, *, paced: bool) -> float:
            began = time.perf_counter()
            partial = 0.0

            async def inbound() -> AsyncIterator[Message]:
                nonlocal began
                yield Message(b'{"action":"run-task","model":"bench/speech_to_text"}')
                began = time.perf_counter()
                for number, at in enumerate(range(0, len(sound), frame)):
                    if paced:
                        await asyncio.sleep(max(0, began + number * 0.02 - time.perf_counter()))
                    yield Message(sound[at : at + frame], "binary")
                yield Message(b'{"action":"finish-task"}')

            async for message in house.converse("speech-to-text-ws", inbound()):
                if not partial and b"result-generated" in message.data:
                    partial = time.perf_counter() - began
            return partial

        await session(speech, paced=True)
        first = statistics.median(
            [await session(speech + bytes(32000), paced=True) - begins for _ in range(sized(5, 1))]
        )
        minute = (speech + bytes(2 * 16000)) * (sized(60, 5) * 32000 // (len(speech) + 32000))
        began = time.process_time()
        await session(minute, paced=False)
        fast = len(minute) / 32000 / (time.process_time() - began)
        count, length = sized((16, 10), (1, 1))
        began = time.process_time()
        await asyncio.gather(*(session(minute[: length * 32000], paced=True) for _ in range(count)))
        busy = (time.process_time() - began) / length
    print(f"\nlive speech: first partial text {first * 1e3:.0f} ms after speech begins")
    print(f"live speech: one core keeps up with {fast:.0f} sessions if they are fed as fast as they take it")
    print(f"live speech: {count} sessions at real speed take {busy:.0%} of a core: {count / busy:.0f} fill it")


PARTS = {each.__name__: each for each in (transports, unary, stream, live)}


async def main(names: list[str]) -> None:
    with engine() as endpoint:
        for name in names or PARTS:
            await PARTS[name](endpoint)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))

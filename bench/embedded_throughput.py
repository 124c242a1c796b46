"""The embedded engine through REST against openvino-genai called directly, in turns, on the same model.

python bench/embedded_throughput.py

Both sides stay loaded; while one is measured, the other one sleeps. The client is a bare socket, so that what is
measured is the engine and not an HTTP library. The direct side runs in a process of its own as well.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from _smoke import SMOKE, sized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
NODES = {
    "text_generation": ("HttpLLMCalculator", "LLMCalculatorOptions", "enable_prefix_caching: true"),
    "embeddings": ("EmbeddingsCalculatorOV", "EmbeddingsCalculatorOVOptions", "pooling: MEAN"),
    "rerank": ("RerankCalculatorOV", "RerankCalculatorOVOptions", ""),
}
GRAPH = """input_stream: "HTTP_REQUEST_PAYLOAD:input" output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {{ name: "Executor" calculator: "{}" input_stream: "HTTP_REQUEST_PAYLOAD:input"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  node_options {{ [type.googleapis.com/mediapipe.{}] {{ models_path: "{}" {} }} }} }}"""
TOKENS = sized(400, 20)
STREAMS = sized(8, 2)
BATCH = sized(32, 4)
ROUNDS = sized(15, 1)
SKIPPED = sized(5, 1)
"""Rounds before those that count."""
SENTENCE = "The quick cat sat on the mat and looked at the birds in the garden, number "
LENGTHS = {"sentences": 1, "passages": 6}
"""How many sentences a text has: a question, or the piece of a document that is usual in retrieval."""
WINDOW = 900
"""Characters of a text that the tiny models take whole."""
DIRECT = sys.executable, Path(__file__).with_name("_embedded_direct.py")
DOCUMENTS = Path(__file__).parents[1] / "docs"
NO_PROSE = re.compile(r"```.*?```|^[|#>-].*?$", re.DOTALL | re.MULTILINE)


class Direct:
    """A process that does on order what it is to be measured for.

    :param kind: of the model, or the name of a peer.
    :param program: the Python and the script that runs in it.
    """

    def __init__(self, kind: str, model: Path | None = None, program: tuple[str, Path] = DIRECT) -> None:
        self.process = subprocess.Popen(
            [*map(str, program), kind, str(model or FIXTURES / kind)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        return found

    def __call__(self, name: str, *arguments: object) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.communicate()


class Engine:
    """An engine with a model ``m``.

    :param kind: of the model; without one, the engine has none.
    """

    def __init__(self, kind: str = "", model: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        if kind:
            calculator, options, extra = NODES[kind]
            (folder / "graph.pbtxt").write_text(GRAPH.format(calculator, options, model or FIXTURES / kind, extra))
            served = ["--model_name", "m", "--model_path", str(folder)]
        else:
            (folder / "config.json").write_text('{"model_config_list": []}')
            served = ["--config_path", str(folder / "config.json")]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [
            sys.executable, "-m", "ovms_embedded", "--rest_port", str(self.port), "--rest_bind_address", "127.0.0.1",
            *served, "--log_level", "WARNING",
        ]  # fmt: skip
        self.process = subprocess.Popen(command)
        while self.process.poll() is None:
            try:
                if b" 200 " in self.ask("GET", "/v2/health/ready").split(b"\r\n", 1)[0]:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        sys.exit("The engine ended before it was ready.")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def ask(self, method: str, path: str, fields: dict[str, Any] | None = None) -> bytes:
        """Return the answer of one request on its own connection."""
        with self.connect() as client:
            client.sendall(request(method, path, fields, close=True))
            return b"".join(iter(lambda: client.recv(1 << 20), b""))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._folder.cleanup()


def request(method: str, path: str, fields: dict[str, Any] | None, *, close: bool = False) -> bytes:
    body = json.dumps(fields).encode() if fields else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + body


def chat(*, streamed: bool, tokens: int = TOKENS) -> bytes:
    messages = [{"role": "user", "content": "Count to fifty"}]
    fields = {"model": "m", "messages": messages, "temperature": 0, "ignore_eos": True, "max_tokens": tokens}
    return request("POST", "/v3/chat/completions", fields | {"stream": streamed})


def stream(client: socket.socket) -> dict[str, float]:
    """One streamed chat: tokens per second, and milliseconds to the first text."""
    began = time.perf_counter()
    client.sendall(chat(streamed=True))
    first = 0.0
    tail = b""
    while b"data: [DONE]" not in tail:
        data = client.recv(1 << 16)
        if not first and b'"delta":{"content":"' in tail + data:
            first = time.perf_counter()
        tail = (tail + data)[-4096:]
    ended = time.perf_counter()
    while not tail.endswith(b"0\r\n\r\n"):
        tail += client.recv(64)
    return {"rate": TOKENS / (ended - began), "first": (first - began) * 1000}


def together(clients: list[socket.socket], one: Callable[[socket.socket], object]) -> float:
    """Return the tokens per second of all clients that do the same at once."""
    threads = [threading.Thread(target=one, args=(client,)) for client in clients]
    began = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return TOKENS * len(clients) / (time.perf_counter() - began)


def post(client: socket.socket, data: bytes) -> float:
    """Return the seconds from sending a request on an open connection to having its whole answer."""
    began = time.perf_counter()
    client.sendall(data)
    head, _, body = client.recv(1 << 16).partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0], head
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    missing = length - len(body)
    while missing > 0:
        missing -= len(client.recv(min(missing, 1 << 20)))
    return time.perf_counter() - began


def whole(client: socket.socket) -> None:
    """One chat that is not streamed."""
    post(client, chat(streamed=False))


def memory(pid: int) -> tuple[float, float]:
    """Return the megabytes that a process and its children take: proportional share, and as each would say alone."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    full = [each.memory_full_info() for each in processes]
    return sum(getattr(each, "pss", each.rss) for each in full) / 1e6, sum(each.rss for each in full) / 1e6


def report(
    what: str, ours: list[float], direct: list[float], target: str, unit: str, *, difference: bool = False
) -> None:
    one, other = statistics.median(ours), statistics.median(direct)
    value = f"{one - other:+.2f} {unit}" if difference else f"{one / other:.2f}"
    print(f"{what:48s} ours {one:10.1f}  direct {other:10.1f} {unit:9s} -> {value:10s} (target {target})")


def text() -> None:
    engine, direct = Engine("text_generation"), Direct("text_generation")
    clients = [engine.connect() for _ in range(STREAMS)]
    for _ in range(sized(3, 1)):
        stream(clients[0])
        together(clients, stream)
        direct("stream", TOKENS)
        direct("together", TOKENS, STREAMS)
    one: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    rates: dict[str, tuple[list[float], list[float]]] = {
        name: ([], []) for name in ("1 stream", f"{STREAMS} streams", "1 answer at once", f"{STREAMS} answers at once")
    }
    for _ in range(ROUNDS):
        one.append(stream(clients[0]))
        other.append(direct("stream", TOKENS))
        measured = (
            (one[-1]["rate"], other[-1]["rate"]),
            (together(clients, stream), direct("streams", TOKENS, STREAMS)["rate"]),
            (together(clients[:1], whole), direct("together", TOKENS, 1)["rate"]),
            (together(clients, whole), direct("together", TOKENS, STREAMS)["rate"]),
        )
        for (ours, theirs), (rate, direct_rate) in zip(rates.values(), measured, strict=True):
            ours.append(rate)
            theirs.append(direct_rate)
    for name, (ours, theirs) in rates.items():
        report(name, ours, theirs, "0.9" if "stream" in name else "-", "tokens/s")
    first = [each["first"] for each in one], [each["first"] for each in other]
    report("time to first token", *first, "+5 ms", "ms", difference=True)
    kinds = ("memory, proportional (PSS)", "memory, resident, shared pages twice (RSS)")
    for name, used, needed in zip(kinds, memory(engine.process.pid), memory(direct.process.pid), strict=True):
        report(name, [used], [needed], "+60 MB", "MB", difference=True)
    for each in clients:
        each.close()
    engine.close()
    direct.close()


def prose() -> list[str]:
    """Return the sentences of our own documents: real ones, of whatever lengths people write."""
    text = " ".join(NO_PROSE.sub(" ", path.read_text("utf-8")) for path in sorted(DOCUMENTS.glob("*.md")))
    return [each for each in re.split(r"(?<=[.!?:])\s+", " ".join(text.split())) if len(each) > 15]


def samples(count: int) -> Iterator[list[str]]:
    """Yield batches of texts that are as many sentences long each, other ones every time."""
    chance = random.Random(1)
    written = prose()
    pieces = [" ".join(written[at : at + count]) for at in range(len(written) - count + 1)]
    pieces = [each for each in pieces if len(each) < WINDOW]
    while True:
        yield chance.sample(pieces, BATCH)


def alike(count: int) -> Iterator[list[str]]:
    """Yield batches of texts that are all of one length: nothing can be saved on them."""
    for number in itertools.count():
        yield [". ".join([f"{SENTENCE}{number} {each}"] * count) for each in range(BATCH)]


def batches(kind: str, order: str, path: str, key: str, extra: dict[str, Any]) -> None:
    engine, direct = Engine(kind), Direct(kind)
    client = engine.connect()
    given = {name: samples(count) for name, count in LENGTHS.items()}
    given |= {f"{name} of one length": alike(count) for name, count in LENGTHS.items()}
    for name, batch in given.items():
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(ROUNDS * sized(4, 1) + SKIPPED):
            texts = next(batch)
            seconds = post(client, request("POST", path, {"model": "m", key: texts} | extra))
            rate = direct(order, texts)["rate"]
            if number >= SKIPPED:
                ours.append(BATCH / seconds)
                theirs.append(rate)
        report(f"{kind}, {BATCH} {name}", ours, theirs, "0.9", "texts/s")
    client.close()
    engine.close()
    direct.close()


def main() -> None:
    text()
    if not SMOKE:  # which the next line runs as well
        batches("embeddings", "embed", "/v3/embeddings", "input", {})
    batches("rerank", "rank", "/v3/rerank", "documents", {"query": "Which animal sat on the mat?"})


if __name__ == "__main__":
    main()

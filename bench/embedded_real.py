"""The embedded engine against openvino-genai called directly, on models in the shape of real ones.

    python bench/embedded_real.py [--models FOLDER] [--pairs 5] [--peers PYTHON]
                                  [chat gguf embeddings rerank start peers call]

The models are made here, with random weights of 8 bits: a Qwen3-0.6B (600 MB), a Qwen2-0.5B as GGUF (380 MB) and an
all-MiniLM-L6-v2. Both sides stay loaded and take turns request by request. Each line is the median of the pairs'
ratios, with the least and the greatest. ``peers`` are sentence-transformers, fastembed and llama-cpp-python, where they
are installed; as they may not fit beside the plugin, ``--peers`` names a Python that has them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from _real_models import make, make_gguf
from _smoke import SMOKE, sized
from embedded_throughput import Direct, Engine, chat, post, request

if TYPE_CHECKING:
    import socket

KINDS = ["chat", "gguf", "embeddings", "rerank", "start", "peers", "call"]
SMOKE_KINDS = ["gguf", "rerank", "start", "peers"]
"""The others are measured by the same functions."""
PEERS = Path(__file__).with_name("_peers.py")
TOKENS = sized(48, 4)
STREAMS = sized((1, 4, 8, 16), (2,))
BATCH = sized(32, 4)
SHORT = "The quick cat sat on the mat and looked at the birds, number "
PASSAGE = f"{SHORT}one. " * 6
SIZES = {"1 short": [SHORT], f"{BATCH} short": [SHORT] * BATCH, f"{BATCH} passages": [PASSAGE] * BATCH}
BARE = """
import sys, openvino_genai as genai
scheduler = genai.SchedulerConfig()
pipeline = genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", {})
config = pipeline.get_config()
config.max_new_tokens = 4
config.ignore_eos = True
pipeline.generate(["Hello"], [config])
"""


def say(what: str, unit: str, ours: list[float], theirs: list[float], target: str, other: str = "direct") -> None:
    """Print the ratio of this engine to the other, pair by pair."""
    ratios = [one / two for one, two in zip(ours, theirs, strict=True)]
    middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    values = f"ours {statistics.median(ours):8.2f}  {other} {statistics.median(theirs):8.2f} {unit}"
    print(f"{what:44s} {values:44s} -> {middle:22s} target {target}", flush=True)


def at_once(clients: list[socket.socket], requests: list[bytes]) -> float:
    """Return the seconds until every client has its answer."""
    with ThreadPoolExecutor(len(clients)) as pool:
        began = time.perf_counter()
        list(pool.map(post, clients, requests))
        return time.perf_counter() - began


def streamed(client: socket.socket, number: int) -> None:
    """Read one streamed chat to its end."""
    del number
    client.sendall(chat(streamed=True, tokens=TOKENS))
    tail = b""
    while not tail.endswith(b"0\r\n\r\n"):
        tail = (tail + client.recv(1 << 16))[-64:]


def streams(clients: list[socket.socket]) -> float:
    """Return the tokens per second of streamed chats, one for each client."""
    threads = [threading.Thread(target=streamed, args=(each, 0)) for each in clients]
    began = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return TOKENS * len(clients) / (time.perf_counter() - began)


def measure_chat(name: str, model: Path, pairs: int, counts: tuple[int, ...]) -> None:
    """Streams over REST against a call that does not stream, and against one that streams."""
    engine, direct = Engine("text_generation", model), Direct("text_generation", model)
    for count in counts:
        clients = [engine.connect() for _ in range(count)]
        streams(clients)
        direct("together", TOKENS, count)
        ours: list[float] = []
        plain: list[float] = []
        written: list[float] = []
        for _ in range(pairs):
            ours.append(streams(clients))
            plain.append(direct("together", TOKENS, count)["rate"])
            written.append(direct("streams", TOKENS, count)["rate"])
        say(f"{name}, {count} streams, against no streaming", "tokens/s", ours, plain, ">= 0.95")
        say(f"{name}, {count} streams, against TextStreamer", "tokens/s", ours, written, ">= 1.1")
        for each in clients:
            each.close()
    engine.close()
    direct.close()


def measure_texts(models: Path, pairs: int, kind: str, path: str, key: str, order: str, extra: dict[str, str]) -> None:
    """One text, a batch of short ones and one of passages; and as many single requests at once as the batch has."""
    model = make(kind, models, small=SMOKE)
    engine, direct = Engine(kind, model), Direct(kind, model)
    client = engine.connect()
    for name, texts in SIZES.items():
        body = request("POST", path, {"model": "m", key: texts} | extra)
        post(client, body)
        direct(order, texts)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(pairs * 3):
            ours.append(len(texts) / post(client, body))
            theirs.append(direct(order, texts)["rate"])
        say(f"{kind}, {name}", "texts/s", ours, theirs, ">= 0.95")
    single = request("POST", path, {"model": "m", key: [SHORT]} | extra)
    batch = request("POST", path, {"model": "m", key: [SHORT] * BATCH} | extra)
    # A server closes connections that say nothing, so they are made late.
    clients = [engine.connect() for _ in range(BATCH)]
    apart: list[float] = []
    together: list[float] = []
    for _ in range(pairs * 3):
        apart.append(BATCH / at_once(clients, [single] * BATCH))
        together.append(BATCH / post(clients[0], batch))
    say(f"{kind}, {BATCH} requests at once, against one", "texts/s", apart, together, ">= 0.8")
    for each in (client, *clients):
        each.close()
    engine.close()
    direct.close()


def measure_peers(models: Path, pairs: int, python: str) -> None:
    """What people use instead, called directly, against this engine over REST."""
    found = json.loads(subprocess.run([python, PEERS, "which"], check=True, capture_output=True, text=True).stdout)
    if not found:
        print(f"peers: {python} has none of them")
    model = make("embeddings", models, small=SMOKE) if {"sentence-transformers", "fastembed"} & set(found) else None
    for name in found:
        if name == "llama-cpp-python":
            measure_llama(make_gguf(models, small=SMOKE), pairs, python)
            continue
        engine, peer = Engine("embeddings", model), Direct(name, model, (python, PEERS))
        with engine.connect() as client:
            for size, texts in SIZES.items():
                body = request("POST", "/v3/embeddings", {"model": "m", "input": texts})
                pair = [(len(texts) / post(client, body), peer("embed", texts)["rate"]) for _ in range(pairs * 3 + 1)]
                ours, theirs = zip(*pair[1:], strict=True)
                say(f"embeddings, {size}", "texts/s", list(ours), list(theirs), "-", name)
        engine.close()
        peer.close()


def measure_llama(file: Path, pairs: int, python: str) -> None:
    """One streamed chat of the same GGUF file."""
    engine, peer = Engine("text_generation", file), Direct("llama-cpp-python", file, (python, PEERS))
    with engine.connect() as client:
        pair = [(streams([client]), peer("stream", TOKENS)["rate"]) for _ in range(pairs + 1)]
    ours, theirs = zip(*pair[1:], strict=True)
    say("GGUF, 1 stream", "tokens/s", list(ours), list(theirs), "-", "llama-cpp-python")
    engine.close()
    peer.close()


def bare(model: Path) -> float:
    """Return the seconds of a script that loads a model and answers once."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE, str(model)], check=True)
    return time.perf_counter() - began


def measure_start(model: Path, pairs: int) -> None:
    """From the start of the process to the end of a first short answer; and, without a model, until it is ready."""

    def answered() -> float:
        began = time.perf_counter()
        engine = Engine("text_generation", model)
        with engine.connect() as client:
            post(client, chat(streamed=False, tokens=4))
        seconds = time.perf_counter() - began
        engine.close()
        return seconds

    def ready() -> float:
        began = time.perf_counter()
        engine = Engine()
        seconds = time.perf_counter() - began
        engine.close()
        return seconds

    times = [(answered(), bare(model)) for _ in range(pairs)]
    say("start to first answer", "s", [each[0] for each in times], [each[1] for each in times], "<= 1.2")
    empty = [ready() for _ in range(pairs)]
    spread = f"{statistics.median(empty):.2f} ({min(empty):.2f} to {max(empty):.2f})"
    print(f"{'start to ready, no model':44s} {'s':44s} -> {spread:22s} target <= 0.5", flush=True)


def measure_call(model: Path, pairs: int) -> None:
    """``ovms-plugin call chat --stream`` with nothing running, against the bare script."""
    command = shutil.which("ovms-plugin", path=str(Path(sys.executable).parent))
    if command is None:
        print("call chat --stream: ovms-plugin is not installed")
        return
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
    with tempfile.TemporaryDirectory() as data:

        def run(*words: str) -> float:
            began = time.perf_counter()
            done = subprocess.run([command, *words, "--data-dir", data], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return time.perf_counter() - began

        run("engine", "install", "--platform", "portable")
        run("import", str(model), "bench/chat")
        ask = ("call", "chat", json.dumps(body | {"model": "bench/chat"}), "--stream")
        times = [(run(*ask), bare(model)) for _ in range(pairs)]
    say("call chat --stream, cold", "s", [each[0] for each in times], [each[1] for each in times], "<= 1.2")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("wanted", nargs="*", help=f"{', '.join(KINDS)}; all of them if none is named")
    options.add_argument("--models", type=Path, help="keep the models in this folder, for further runs")
    options.add_argument(
        "--peers", default=sys.executable, help="the Python that has the peers; this one if none is named"
    )
    options.add_argument("--pairs", type=int, default=sized(5, 1))
    chosen = options.parse_args()
    wanted = chosen.wanted or sized(KINDS, SMOKE_KINDS)
    pairs = chosen.pairs
    with tempfile.TemporaryDirectory() as folder:
        models = chosen.models or Path(folder)
        if "chat" in wanted:
            measure_chat("chat", make("text_generation", models, small=SMOKE), pairs, STREAMS)
        if "gguf" in wanted:
            measure_chat("GGUF", make_gguf(models, small=SMOKE), pairs, sized((1,), STREAMS))
        if "embeddings" in wanted:
            measure_texts(models, pairs, "embeddings", "/v3/embeddings", "input", "embed", {})
        if "rerank" in wanted:
            extra = {"query": "Which animal sat on the mat?"}
            measure_texts(models, pairs, "rerank", "/v3/rerank", "documents", "rank", extra)
        if "start" in wanted:
            measure_start(make("text_generation", models, small=SMOKE), pairs)
        if "peers" in wanted:
            measure_peers(models, pairs, chosen.peers)
        if "call" in wanted:
            measure_call(make("text_generation", models, small=SMOKE), pairs)


if __name__ == "__main__":
    main()

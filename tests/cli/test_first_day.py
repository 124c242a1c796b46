"""The first things that people type, many of them learnt elsewhere, at a terminal of 80 columns.

Each answer is what was asked for, or one sentence that names it.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from ovms_kernel.compose import compose_kernel
from ovms_kernel.settings import read_settings

if os.name == "nt":
    pytest.skip("pseudo-terminals of this kind are not there on Windows", allow_module_level=True)

from tests.cli.terminal import Terminal

ANSWER = "OpenVINO is an open source toolkit"
MODELS = {
    "tiny/chat": "text_generation",
    "tiny/embeddings": "embeddings",
    "tiny/rerank": "rerank",
    "tiny/listener": "speech_to_text",
    "tiny/speaker": "text_to_speech",
    "tiny/image": "image_generation",
}
REFUSED = "http://127.0.0.1:9"
"""An address where nobody listens."""
SLOW = re.compile(r"^Extension \S+ of \S+\s+takes\s+[\d.]+\s+s\s+to\s+load\.\n?", re.MULTILINE)
"""What a busy machine brings about."""
COLOR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])m")


@dataclass
class Home:
    """A person's folder, with a server in the background."""

    executable: str
    environment: dict[str, str]
    folder: Path
    told: str = ""

    def open(self, *words: str, **variables: str) -> Terminal:
        """Type a command."""
        return Terminal([self.executable, *words], self.environment | variables, folder=self.folder)


@pytest.fixture(scope="module")
def home(executable: str, fixtures: Path) -> Iterator[Home]:
    """The tiny models, and a server in the background, for all that is typed here."""
    with tempfile.TemporaryDirectory(prefix="day", dir="/tmp") as name:
        folder = Path(name)
        kept = {key: text for key, text in os.environ.items() if not key.startswith(("OVMS_", "AOG_", "NO_COLOR"))}
        environment = kept | {
            "HOME": str(folder),
            "TERM": "xterm-256color",
            "OVMS_PLUGIN_DATA_DIR": str(folder / "data"),
            "OVMS_PLUGIN_PLATFORM": "portable",
            "OVMS_PLUGIN_FACES__HTTP__PORT": "0",
            "OVMS_PLUGIN_HUBS__MODELSCOPE__ENDPOINT": REFUSED,
            "EDITOR": "true",
        }
        home = Home(executable, environment, folder)
        (folder / "notes.txt").write_text("OpenVINO runs models on Intel CPUs.\n")
        (folder / "cats.txt").write_text("Cats sleep all day.\n")
        (folder / "speech.wav").write_bytes((fixtures / "speech_to_text_samples/en_one_two_three.wav").read_bytes())
        with ThreadPoolExecutor(1) as thread:
            thread.submit(anyio.run, fill, folder / "data", fixtures).result()  # this one may have an event loop
        with home.open("serve", "-d") as terminal:
            code, home.told = terminal.code(), terminal.shown()
        assert code == 0, home.told
        try:
            yield home
        finally:
            subprocess.run([executable, "stop"], env=environment, check=True, capture_output=True)


async def fill(data_dir: Path, fixtures: Path) -> None:
    async with compose_kernel(read_settings({}, data_dir=data_dir, platform="portable")) as kernel:
        await kernel.install_engine()
        for model, kind in MODELS.items():
            await kernel.import_model(fixtures / kind, model)


DAY: list[tuple[str, int, str]] = [
    # What is this?
    ("", 1, r"Commands:\n  run  (?s:.*)A host such as AOG"),
    ("--help", 0, r"Usage: ovms-plugin .*(?s:.*)\n  serve +Serve every installed model"),
    ("help", 0, r"Commands:"),
    ("help run", 0, r"Usage: ovms-plugin run \[OPTIONS\] MODEL \[TEXT\]\.\.\."),
    ("version", 0, r"^ovms-plugin \d+\.\d+\.\d+$"),
    ("-V", 0, r"^ovms-plugin \d+\.\d+\.\d+$"),
    ("-v", 0, r"^ovms-plugin \d+\.\d+\.\d+$"),
    # Models
    ("ls", 0, r"^MODEL +TYPE +SIZE +WEIGHTS +CHANGED\n(?:helper .*\n)?tiny/chat +text_generation +1\.2 MB"),
    ("list", 0, r"\ntiny/embeddings +embeddings"),
    ("models", 0, r"\ntiny/rerank +rerank"),
    ("show tiny/chat", 0, r"id +tiny/chat\n"),
    ("info tiny/chat", 0, r"graph\.pbtxt:"),
    ("pull tiny/chat", 0, r"^Pulled tiny/chat: text_generation"),
    ("pull https://modelscope.cn/models/tiny/chat", 0, r"^Pulled tiny/chat"),
    ("pull qwen3:0.6b", 3, r"^'qwen3:0\.6b' is a name of Ollama's"),
    ("pull OpenVINO/Qwen3-0.6B-int4-ov", 4, r"cannot be reached \(Connection refused\)"),
    ("download", 2, r"^Missing argument 'MODEL'; usage: ovms-plugin download \[OPTIONS\] MODEL\.\.\.$"),
    ("search qwen", 4, r"cannot be reached"),
    ("rm nosuch", 3, r"^Model nosuch is not installed"),
    ("delete nosuch", 3, r"^Model nosuch is not installed"),
    ("df", 0, r"\nfree +\S+/data +"),
    ("verify tiny/chat", 0, r"^tiny/chat: unchanged\.$"),
    # Talking to them
    ('run tiny/chat "What is OpenVINO?"', 0, ANSWER),
    ('chat "What is OpenVINO?" --stats', 0, rf"{ANSWER}(?s:.*) tokens/s, first after"),
    ("chat -m nosuch hi", 3, r"^Model nosuch is not installed; installed for text_generation: tiny/chat"),
    ("run", 2, r"^Missing argument 'MODEL'; usage: ovms-plugin run"),
    ("embed hello", 0, r"^\[-?0\.\d+, "),
    ('rerank "What is OpenVINO?" notes.txt cats.txt', 0, r"^ *\d\.\d{4}  notes\.txt\n *\d\.\d{4}  cats\.txt$"),
    ("transcribe speech.wav", 0, r"(?i)one"),
    ("say hello -o hello.wav", 0, r"^hello\.wav$"),
    ("imagine cat --size 64x64 --steps 1", 0, r"image\.png$"),
    ('call embed \'{"input": "hi"}\'', 0, r'"embedding"'),
    ("call nosuch", 3, r"^There is no service 'nosuch' \(installed: chat, embed"),
    # The server and its engine
    ("ps", 0, r"^MODEL +MEMORY +DEVICE +USERS +IDLE +UNLOADED\n"),
    ("status", 0, r"^engine +ready\n(?s:.*)\nhttp url +http://127"),
    ("load tiny/chat", 0, r"^tiny/chat is loaded\.$"),
    ("stop tiny/chat", 0, r"^tiny/chat is unloaded\.$"),
    ("server status", 0, r"^engine +ready\n"),
    ("server start", 4, r"^A server runs here already, at http://127"),
    ("serve tiny/chat", 2, r"^`serve` takes no model"),
    ("runtime ls", 0, r"portable +active"),
    ("serve -d", 4, r"^A server runs here already, at http://127"),
    ("logs -n 2", 0, r"^\[20"),
    ("connect openai", 0, r"base_url=\"http://127"),
    ("key list", 0, r"^default +\S+/key$"),
    (
        "service status",
        1,
        r"`ovms-plugin service install` does that\.$|^This system has no",
    ),
    ("engine ls", 0, r"portable +active"),
    ("bench tiny/chat --streams 1 --tokens 4", 0, r"^STREAMS +TOKENS/S +FIRST TOKEN"),
    ("doctor", 0, r"system +(?s:.*)hub +(?s:.*)→"),
    # Settings
    ("config list", 0, r"platform = portable"),
    ("config get rest_port", 0, r"^16666$"),
    ("config set chat.default_model x", 2, r"did you mean services\.chat\.default_model\?$"),
    (
        'alias helper tiny/chat --system "Be brief."',
        0,
        r"^helper now stands for tiny/chat\.\nThe running server .* from now on",
    ),
    ("alias", 0, r"\nhelper +tiny/chat +- +- +Be brief\."),
    ("completion bash", 0, r"_ovms_plugin_completion\(\)"),
    # Words of other programs, and slips
    ("create", 2, r"`ovms-plugin alias NAME MODEL"),
    ("cp a b", 2, r"`ovms-plugin alias NAME MODEL"),
    ("push", 2, r"^Models are not uploaded"),
    ("convert", 2, r"optimum-cli"),
    ("login", 2, r"`ovms-plugin config set hubs\.modelscope\.token"),
    ("signin", 2, r"`ovms-plugin config set hubs\.modelscope\.token"),
    ("launch", 2, r"`ovms-plugin connect`"),
    ("update", 2, r"`ovms-plugin engine upgrade`"),
    ("prune", 2, r"`ovms-plugin df`"),
    ("install", 2, r"`ovms-plugin pull MODEL`"),
    ("lst", 2, r"^No such command 'lst'; did you mean 'ls'\?$"),
    ("ls --size", 2, r"^No such option: --size"),
    ("connect nosuch", 2, r"'nosuch' is not one of"),
]
QUICK = [each for each in DAY if each[0] in ("", "ls", "ps", "doctor", "lst", "create", "download")]
"""What is typed again without colour."""


def check(home: Home, line: str, code: int, pattern: str, **variables: str) -> Terminal:
    import shlex

    with home.open(*shlex.split(line), **variables) as terminal:
        ended, shown = terminal.code(), SLOW.sub("", terminal.shown())
    assert ended == code, shown
    assert re.search(pattern, shown) or re.search(pattern, " ".join(shown.split())), shown
    assert "Traceback" not in shown
    assert not re.search(r"<(str|int|list\[)|\{MODEL\}|Internal error", shown), "no jargon"
    if code:
        words = [each for each in shown.splitlines() if each]
        assert not line or len(words) <= 4, f"one sentence:\n{shown}"
    return terminal


@pytest.mark.parametrize(("line", "code", "pattern"), DAY, ids=[each[0] for each in DAY])
def test_what_people_type_first(home: Home, line: str, code: int, pattern: str) -> None:
    terminal = check(home, line, code, pattern)
    if "`" not in pattern and line.split()[:1] not in (["logs"], ["connect"], ["embed"], ["call"], ["completion"]):
        assert not terminal.broken(), "the terminal broke no word"


@pytest.mark.parametrize(("line", "code", "pattern"), QUICK, ids=[each[0] for each in QUICK])
def test_without_colour_it_says_the_same(home: Home, line: str, code: int, pattern: str) -> None:
    terminal = check(home, line, code, pattern, NO_COLOR="1", LC_ALL="zh_CN.UTF-8")
    assert not COLOR.search(terminal.raw)


def test_a_server_in_the_background_says_where_its_log_is(home: Home) -> None:
    assert "Engine " in home.told
    assert str(home.folder / "data" / "logs" / "serve.log") in home.told
    assert "stop it with `ovms-plugin stop`" in home.told
    assert "\n  tiny/chat (text_generation)\n" in home.told, "a list keeps its indent"


def test_a_conversation_with_a_word_of_help(home: Home) -> None:
    with home.open("run", "tiny/chat") as terminal:
        terminal.wait_for("/help shows the commands")
        terminal.type("What is OpenVINO?\r")
        terminal.wait_for(ANSWER)
        terminal.type("/stats\r")
        terminal.wait_for("Speed is shown.")
        terminal.type("/nosuch\r")
        terminal.wait_for("There is no command /nosuch; /help lists them.")
        terminal.type("/bye\r")
        assert terminal.code() == 0


def test_an_unreachable_hub_is_told_within_two_seconds_and_with_its_cause(home: Home) -> None:
    # Beside a command that asks no hub, as the machine may be busy.
    began = time.monotonic()
    check(home, "pull OpenVINO/Qwen3-0.6B-int4-ov", 4, "Connection refused")
    failed = time.monotonic() - began
    began = time.monotonic()
    check(home, "ls", 0, "tiny/chat")
    assert failed < 2 + 2 * (time.monotonic() - began)


def test_status_watch_shows_what_changes_until_ctrl_c(home: Home) -> None:
    with home.open("status", "--watch") as terminal:
        terminal.wait_for("engine ")
        check(home, "load tiny/embeddings", 0, "is loaded")
        terminal.wait_for("tiny/embeddings")
        terminal.type("\x03")
        assert terminal.code() == 130
        assert "No longer watching." in terminal.shown()


def server(home: Home) -> httpx.Client:
    found: dict[str, Any] = json.loads((home.folder / "data" / "run" / "http.json").read_text())
    headers = {"authorization": f"Bearer {Path(found['key_file']).read_text().strip()}"}
    return httpx.Client(base_url=found["url"], headers=headers, timeout=60, trust_env=False)


def test_profiles_are_models_of_their_own_on_the_same_files(home: Home) -> None:
    now = "The running server uses it from now on"

    def chat(client: httpx.Client, model: str, text: str = "What is OpenVINO?") -> httpx.Response:
        asked = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        return client.post("/v1/chat/completions", json=asked)

    check(
        home, 'alias small tiny/chat --context 64 --system "Be brief."', 0, rf"^small now stands for tiny/chat\.\n{now}"
    )
    check(home, "alias large tiny/chat --context 512 --device cpu --option max_num_seqs=4", 0, now)
    check(home, "alias", 0, r"\nlarge +tiny/chat +device=CPU, context=512, max_num_seqs=4")
    with server(home) as client, ThreadPoolExecutor(2) as threads:
        listed = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
        lengths = {name: listed[name]["context_length"] for name in ("small", "large", "tiny/chat")}
        assert lengths == {"small": 64, "large": 512, "tiny/chat": 2048}
        assert {"small", "large"} < {each["name"] for each in client.get("/api/tags").json()["models"]}
        answers = dict(zip(("small", "large"), threads.map(chat, [client] * 2, ("small", "large")), strict=True))
        used = {name: each.json()["usage"]["prompt_tokens"] for name, each in answers.items()}
        assert used["small"] > used["large"], "its system text is sent"
        long = "word " * 100
        refused = chat(client, "small", long)
        assert refused.status_code == 400
        assert "exceeds model max length: 64" in refused.json()["error"]["message"]
        assert chat(client, "large", long).status_code == 200
        with home.open("ps", "--json") as terminal:
            assert terminal.code() == 0
        loaded = {each["id"]: each["memory"] for each in json.loads(terminal.shown())}
        assert loaded["small"] > 0
        assert loaded["large"] > 0
        check(home, "alias small tiny/chat --context 500", 0, now)
        assert chat(client, "small", long).is_success, "the change holds at once"
        models = home.folder / "data" / "models"
        assert (models / ".profiles/small/openvino_model.bin").samefile(models / "tiny/chat/openvino_model.bin")
        check(home, "alias small --remove", 0, rf"^The alias small is removed\.\n{now}")
        assert chat(client, "small").status_code == 404
        check(home, "rm large", 0, r"^The alias large is removed\.")
        assert chat(client, "tiny/chat").status_code == 200, "their model stays"
    assert list((models / ".profiles").iterdir()) == []


def test_an_alias_reaches_every_client_at_once_and_after_a_restart(home: Home) -> None:
    def usage(client: httpx.Client, model: str) -> dict[str, int]:
        asked = {"model": model, "messages": [{"role": "user", "content": "What is OpenVINO?"}]}
        found: dict[str, int] = client.post("/v1/chat/completions", json=asked).json()["usage"]
        return found

    now = "The running server uses it from now on"
    with server(home) as client:
        plain = usage(client, "tiny/chat")
        check(home, "alias brief tiny/chat --set max_tokens=3", 0, rf"^brief now stands for tiny/chat\.\n{now}")
        assert {each["id"]: each.get("alias_of") for each in client.get("/v1/models").json()["data"]}[
            "brief"
        ] == "tiny/chat"
        assert usage(client, "brief") == plain | {"completion_tokens": 3, "total_tokens": plain["prompt_tokens"] + 3}
        check(home, 'alias brief tiny/chat --system "Be brief." --set max_tokens=4', 0, now)
        changed = usage(client, "brief")
        assert changed["completion_tokens"] == 4
        assert changed["prompt_tokens"] > plain["prompt_tokens"], "the system text is sent"
    with home.open("restart") as terminal:
        assert terminal.code() == 0, terminal.shown()
    with server(home) as client:
        assert usage(client, "brief") == changed
        check(home, "rm brief", 0, rf"^The alias brief is removed\.\n{now}")
        assert client.get("/v1/models/brief").status_code == 404
        assert client.post("/v1/completions", json={"model": "brief", "prompt": "x"}).status_code == 404


def test_a_setting_holds_at_once_or_says_that_it_takes_a_restart(home: Home) -> None:
    check(home, "load tiny/rerank", 0, "is loaded")
    check(home, "config set models.tiny/rerank.idle_unload 1", 0, "The running server uses it from now on")
    end = time.monotonic() + 30
    while True:
        with home.open("ps", "--json") as terminal:
            assert terminal.code() == 0
        if '"tiny/rerank"' not in terminal.shown():
            break
        assert time.monotonic() < end, terminal.shown()
    check(home, "config unset models.tiny/rerank.idle_unload", 0, "from now on")
    check(home, "config set memory_budget 4GB", 0, "from now on")
    check(home, "config unset memory_budget", 0, "from now on")
    check(home, "config set memory_budget much", 2, r"^'much' is not a size; write one such as 8GB")
    check(home, "config set models.tiny/rerank.max_allowed_chunks 9", 0, "when it next loads tiny/rerank")
    check(home, "config unset models.tiny/rerank.max_allowed_chunks", 0, "when it next loads tiny/rerank")
    check(home, "config set start_timeout 90", 0, r"uses start_timeout after `ovms-plugin\s+restart`")
    check(home, "config unset start_timeout", 0, "uses start_timeout after")


def test_stop_ends_the_server_and_says_so_twice(home: Home) -> None:
    # The last one: it ends what the others ask.
    check(home, "stop", 0, r"^The server is stopped; models and settings are kept\.$")
    check(home, "stop", 0, r"^No server is running\.$")


def test_serve_in_the_background_ends_with_the_cause(home: Home) -> None:
    check(home, "serve -d --host 192.0.2.1", 2, r"^This machine cannot listen at 192\.0\.2\.1")

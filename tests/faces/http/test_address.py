"""One address: where it is, who may use it, and how it ends."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ovms_face_aog.client import PluginHost, plugin_command
from ovms_face_http import config
from ovms_face_http.keys import Keys
from ovms_face_http.server import bind
from ovms_kernel.api.faces import BadRequest

MODELS = {"tiny/chat", "tiny/vision", "tiny/embeddings", "tiny/rerank", "tiny/image", "tiny/listener", "tiny/speaker"}
ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs."
QUESTION = [{"role": "user", "content": "What is OpenVINO?"}]


def run(served: Any, *words: str, code: int = 0) -> str:
    executable = str(Path(served.process.args[0]))
    done = subprocess.run(
        [executable, *words], env=served.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_what_is_installed_is_listed_and_loads_when_it_is_asked_for(client: httpx.Client) -> None:
    listed = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
    assert listed.keys() == MODELS
    assert listed["tiny/chat"]["type"] == "text_generation"
    assert listed["tiny/chat"]["context_length"] == 2048
    answer = client.post("/v1/chat/completions", json={"model": "tiny/chat", "messages": QUESTION})
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    assert client.get("/v1/models/tiny/chat").json()["loaded"] is True
    assert client.get("/v1/models/tiny%2Fchat").json()["id"] == "tiny/chat"
    assert client.get("/v2/models/tiny%2Fchat/ready").status_code == 200
    assert client.get("/v2/models/tiny/chat/ready").status_code == 200
    assert client.get("/v2/models/no/such/ready").status_code == 404


def test_every_route_but_health_needs_a_key(server: Any, client: httpx.Client) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        assert stranger.get("/health").json() == {"status": "ok"}
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/no/such")):
            for headers in ({}, {"authorization": "Bearer sk-wrong"}, {"authorization": f"Basic {server.key}"}):
                refused = stranger.request(method, path, headers=headers)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"].startswith("Bearer")
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert server.key not in refused.text
        for name, value in (
            ("authorization", f"bearer {server.key}"),
            ("x-api-key", server.key),
            ("api-key", server.key),
        ):
            assert stranger.get("/v1/models", headers={name: value}).status_code == 200


def test_a_named_key_works_at_once_and_is_revoked_within_a_moment(server: Any) -> None:
    key = run(server, "key", "add", "laptop").strip()
    assert "laptop" in run(server, "key", "list")
    assert key not in (server.data_dir / "http" / "keys.json").read_text()
    assert (server.data_dir / "http" / "key").stat().st_mode & 0o777 == 0o600
    assert (server.data_dir / "http" / "keys.json").stat().st_mode & 0o777 == 0o600
    assert "already" in run(server, "key", "add", "laptop", code=2)
    headers = {"authorization": f"Bearer {key}"}
    time.sleep(1.1)  # a running server looks once a second
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as client:
        assert client.get("/v1/models").status_code == 200
        run(server, "key", "remove", "laptop")
        time.sleep(1.1)
        assert client.get("/v1/models").status_code == 401
    assert "no key laptop" in run(server, "key", "remove", "laptop", code=3)


def test_the_default_key_is_made_once_whoever_asks(tmp_path: Path) -> None:
    made: set[str] = set()
    threads = [threading.Thread(target=lambda: made.add(Keys(tmp_path).default())) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert made == {Keys(tmp_path).default()}
    assert Keys(tmp_path).name_of(made.pop()) == "default"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_named_and_no_half_of_a_key_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, mode: str) -> Any:
        os.close(descriptor)
        return Path("/dev/full").open(mode)

    keys = Keys(tmp_path / "http")
    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space left") as caught:
        keys.default()
    assert caught.value.filename == str(tmp_path / "http" / "key")
    assert list((tmp_path / "http").iterdir()) == []


def test_pages_and_names_of_others_get_nothing(server: Any, client: httpx.Client) -> None:
    body = {"model": "tiny/chat", "messages": QUESTION}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": server.url.replace("127.0.0.1", "localhost")},
        {"host": "evil.example"},
        {"host": f"evil.example:{server.url.rpartition(':')[2]}"},
    ):
        for refused in (
            client.post("/v1/chat/completions", json=body, headers=headers),
            client.options("/v1/chat/completions", headers=headers | {"access-control-request-method": "POST"}),
            client.get("/health", headers=headers),
        ):
            assert refused.status_code == 403
            assert not [name for name in refused.headers if name.startswith("access-control")]
            assert "OpenVINO is" not in refused.text
    own = client.post("/v1/chat/completions", json=body, headers={"origin": "http://pages.example"})
    assert own.headers["access-control-allow-origin"] == "http://pages.example"
    assert own.json()["choices"][0]["message"]["content"] == ANSWER
    wanted = {
        "origin": "http://pages.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        preflight = browser.options("/v1/chat/completions", headers=wanted)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == wanted["access-control-request-headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]


def test_no_page_reads_what_the_engine_itself_answers(server: Any, client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json={"model": "tiny/chat", "messages": QUESTION, "max_tokens": 1})
    port = json.loads((server.data_dir / "run" / "engine.json").read_text())["rest"]
    for origin in ("http://evil.example", "null", "http://pages.example", f"http://127.0.0.1:{port}"):
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/config", headers={"origin": origin}, trust_env=False)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which libraries a process has loaded")
def test_the_server_runs_on_uvloop_and_httptools(server: Any) -> None:
    loaded = " ".join(each.path for each in psutil.Process(server.process.pid).memory_maps())
    assert "/uvloop/" in loaded
    assert "/httptools/" in loaded


def test_a_port_in_use_is_said_with_its_holder(server: Any, other_data_dir: Path) -> None:
    port = server.url.rpartition(":")[2]
    told = run(server, "serve", "--port", port, "--data-dir", str(other_data_dir), code=4)
    assert f"(process {server.process.pid})" in told
    assert f"--port {int(port) + 1}" in told
    assert len(told.splitlines()) == 1


def test_the_command_and_status_say_where_everything_is(server: Any) -> None:
    status = json.loads(run(server, "status", "--json"))
    assert status["http"]["url"] == server.url
    assert Path(status["http"]["key_file"]).read_text().strip() == server.key
    assert server.url in run(server, "status")
    everything = run(server, "connect")
    assert everything.count(server.url) >= 9
    assert everything.count(server.key) >= 9
    assert run(server, "connect", "codex") in everything


@pytest.mark.parametrize("host", ["no.such.name.invalid", "bad..name", "192.0.2.1"])
def test_an_address_that_this_machine_does_not_have_is_said_in_a_sentence(host: str) -> None:
    with pytest.raises(BadRequest, match=r"faces\.http\.host") as refused:
        bind(config.read({"host": host, "port": 0}))
    assert host in refused.value.message


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"prot": 1}, "did you mean faces.http.port?"),
        ({"port": "many"}, "faces.http.port"),
        ({"port": 70000}, "faces.http.port"),
        ({"host": "0.0.0.0", "keys": "none"}, "whole network"),
        ({"tls_cert": "/a"}, "tls_key"),
        ({"allowed_origins": "chat.example"}, "https://chat.example.com"),
        ({"keys": "all"}, "faces.http.keys"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(section: dict[str, object], part: str) -> None:
    with pytest.raises(BadRequest, match=part.replace("?", r"\?")):
        config.read(section)


async def test_without_keys_everything_on_this_machine_may_ask(stubbed: Any) -> None:
    async with (
        stubbed({}, face={"keys": "none"}) as served,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", trust_env=False) as client,
    ):
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/v1/models", headers={"origin": "http://evil.example"})).status_code == 403


def test_an_answer_that_has_begun_is_sent_to_its_end(start) -> None:
    counting = {"model": "tiny/chat", "stream": True, "messages": [{"role": "user", "content": "Count to a hundred"}]}
    with start() as served, served.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=counting) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("data:"):  # comments come while the model loads
                pass
            served.process.terminate()
            rest = list(lines)
        assert rest[-2] == "data: [DONE]" or rest[-1] == "data: [DONE]"
        assert served.process.wait(20) == 143
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


def test_a_head_without_an_end_is_refused(server: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as endless:
        endless.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        with suppress(ConnectionError):
            for _ in range(80):
                endless.sendall(b"x-filler: " + b"a" * 1000 + b"\r\n")
        assert endless.recv(1000).startswith(b"HTTP/1.1 400 ")


async def test_aogs_plugin_serves_http_if_a_setting_says_so(other_data_dir: Path, environment: Any) -> None:
    where = other_data_dir / "run" / "http.json"
    given = environment(with_aog="true") | {"OVMS_PLUGIN_DATA_DIR": str(other_data_dir)}
    async with PluginHost(plugin_command(), given) as host:
        found: dict[str, Any] = {}
        async with asyncio.timeout(30):
            plugin = psutil.Process(host.pid)
            while found.get("pid") not in [host.pid, *(each.pid for each in plugin.children(recursive=True))]:
                await asyncio.sleep(0.05)
                with suppress(OSError, ValueError):
                    found = json.loads(where.read_text())
        headers = {"authorization": f"Bearer {Path(found['key_file']).read_text().strip()}"}
        async with httpx.AsyncClient(base_url=found["url"], headers=headers, timeout=60, trust_env=False) as client:
            assert len((await client.get("/v1/models")).json()["data"]) == len(MODELS)
            asked = {"model": "tiny/chat", "messages": QUESTION}
            answer = await client.post("/v1/chat/completions", json=asked)
            assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        assert await host.kill() < 5

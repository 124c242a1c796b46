"""Requests and refusals: bodies, errors, forms, ids, and clients that leave."""

import asyncio
import json
import socket
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import psutil
import pytest

CHAT = {"model": "tiny/chat", "messages": [{"role": "user", "content": "What is OpenVINO?"}]}

FORM = {"content-type": "multipart/form-data"}


def post(client: httpx.Client, path: str, **options: object) -> httpx.Response:
    return client.post(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "options", "status", "code", "part"),
    [
        ("/v1/chat/completions", {"content": b""}, 400, None, "empty"),
        ("/v1/chat/completions", {"content": b"{"}, 400, None, "not valid JSON"),
        ("/v1/chat/completions", {"content": b"[]"}, 400, None, "one JSON object"),
        ("/v1/chat/completions", {"content": b"\xff"}, 400, None, "not valid JSON"),
        ("/v1/chat/completions", {"json": {"model": "tiny/chat"}}, 400, None, "messages"),
        ("/v1/chat/completions", {"json": CHAT | {"stream": "yes"}}, 400, None, "stream"),
        ("/v1/chat/completions", {"json": CHAT | {"stream": 1}}, 400, None, "stream"),
        ("/v1/chat/completions", {"json": CHAT | {"model": 5}}, 400, None, "model"),
        ("/v1/chat/completions", {"json": CHAT | {"model": "no/such"}}, 404, "model_not_found", "pull no/such"),
        ("/v1/chat/completions", {"json": CHAT | {"model": "no/such", "stream": True}}, 404, "model_not_found", "pull"),
        ("/v1/chat/completions", {"json": CHAT | {"model": "tiny/rerank"}}, 400, None, "tiny/chat"),
        ("/v1/embeddings", {"json": {"model": "tiny/embeddings"}}, 400, None, "input"),
        ("/v1/chat/completionz", {"json": CHAT}, 404, "unknown_url", "POST /v1/chat/completionz"),
        ("/v1/models", {"json": {}}, 405, "method_not_allowed", "GET"),
        ("/v1/chat/completions", {"content": b"x", "headers": {"content-encoding": "gzip"}}, 415,
         "unsupported_content_encoding", "'gzip'; send it plain"),
        ("/v1/audio/transcriptions", {"data": {"model": "tiny/listener"}, "files": {"x": b""}}, 400, None,
         "field file must be base64, a data URI, or an uploaded file"),
        ("/v1/images/edits", {"json": {"model": "tiny/image", "prompt": "a cat"}}, 400, None, "field image is missing"),
        ("/v1/images/edits", {"data": {"model": "tiny/image", "prompt": "a cat"}, "files": {"x": b""}}, 400, None,
         "field image is missing"),
        ("/v1/audio/translations", {"content": b"x", "headers": FORM}, 400, None, "form"),
    ],
)  # fmt: skip
def test_a_refusal_is_openais_error_object(
    client: httpx.Client, path: str, options: dict[str, object], status: int, code: str | None, part: str
) -> None:
    answer = post(client, path, **options)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert part in error["message"]


def test_v3_is_the_same_as_v1(client: httpx.Client) -> None:
    assert client.get("/v3/models").json() == client.get("/v1/models").json()
    assert client.post("/v3/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1//models//"])
def test_slashes_too_many_do_no_harm(client: httpx.Client, path: str) -> None:
    assert client.get(str(client.base_url).rstrip("/") + path).json() == client.get("/v1/models").json()


def test_null_counts_as_absent(client: httpx.Client) -> None:
    fields = CHAT | {"stream": None, "max_tokens": None, "stop": None, "tools": None, "response_format": None}
    assert client.post("/v1/chat/completions", json=fields).status_code == 200
    fields = {"model": "tiny/embeddings", "input": "x", "encoding_format": None, "dimensions": None}
    assert client.post("/v1/embeddings", json=fields).status_code == 200


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(stubbed: Any) -> None:
    answer = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "model": "m"}
    asked = CHAT | {"model": "m"}
    async with (
        stubbed({"/v3/chat/completions": answer}, face={"max_body": 2000}) as served,
        served.client() as client,
    ):
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 200
        refused = await client.post("/v1/chat/completions", json=asked | {"user": "x" * 3000})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")

        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {served.key}\r\n"
        for unfinished in (
            f"transfer-encoding: chunked\r\n\r\nbb8\r\n{'x' * 3000}\r\n",
            "content-length: 100000000000\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(f"{head}{unfinished}".encode())
            async with asyncio.timeout(10):
                assert (await reader.read(1000)).startswith(b"HTTP/1.1 413 ")
            writer.close()


def test_request_ids_are_in_answer_and_log_and_prompts_are_in_none(server: Any, client: httpx.Client) -> None:
    secret = "the password is swordfish"
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert client.get("/health").headers["x-request-id"].startswith("req_")
    assert "\n" not in client.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]
    fields = {"model": "tiny/chat", "messages": [{"role": "user", "content": secret}], "max_tokens": "many"}
    client.post("/v1/chat/completions?q=swordfish", json=fields)
    client.post("/v1/chat/completions", content=f'{{"messages": "{secret}"'.encode())
    logs = [each.read_text() for each in server.data_dir.glob("logs/*.log")]
    logs.append(server.data_dir.with_name("data.serve.log").read_text())
    assert not [each for each in logs if "swordfish" in each]


def test_a_client_that_leaves_ends_its_generation(server: Any, client: httpx.Client) -> None:
    counting = CHAT | {"messages": [{"role": "user", "content": "Count to a hundred"}]}
    client.post("/v1/chat/completions", json=CHAT)  # loads it
    found = json.loads((server.data_dir / "run" / "engine.json").read_text())
    engine = psutil.Process(found["pid"])

    def busy() -> float:
        return sum(sum(each.cpu_times()[:2]) for each in [engine, *engine.children(recursive=True)])

    def grows() -> bool:
        before = busy()
        time.sleep(0.3)
        return busy() - before > 0.05

    while grows():  # the engine makes the process ready that takes the next model
        assert server.process.poll() is None
    host, port = server.url.removeprefix("http://").split(":")
    for stream in (True, False):
        body = json.dumps(counting | {"stream": stream, "max_tokens": 1900, "ignore_eos": True}).encode()
        with socket.create_connection((host, int(port)), timeout=10) as leaving:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {server.key}\r\n"
            leaving.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                assert leaving.recv(100)
            else:
                time.sleep(0.3)
        time.sleep(0.7)
        before = busy()
        time.sleep(0.5)
        assert busy() - before < 0.2, "the engine still works for nobody"


def test_a_model_stays_for_as_long_as_is_said(client: httpx.Client) -> None:
    """Half an hour unless a request says otherwise, as Ollama's clients do."""
    asked = {"model": "tiny/vision", "messages": CHAT["messages"], "stream": False, "options": {"num_predict": 1}}

    def stays() -> float | None:
        """Return for how many seconds from now the model stays; ``None`` if it is not loaded."""
        found = {each["model"]: each for each in client.get("/api/ps").json()["models"]}
        if "tiny/vision" not in found:
            return None
        return (datetime.fromisoformat(found["tiny/vision"]["expires_at"]) - datetime.now(UTC)).total_seconds()

    client.post("/v1/chat/completions", json=CHAT | {"model": "tiny/vision", "max_tokens": 1})
    assert 1700 < (stays() or 0) < 1801
    client.post("/api/chat", json=asked | {"keep_alive": -1})
    assert (stays() or 0) > 86400 * 365
    client.post("/api/chat", json=asked | {"keep_alive": "2s"})
    end = time.monotonic() + 20
    while stays() is not None or client.get("/v1/models/tiny/vision").json()["loaded"]:
        assert time.monotonic() < end, "it is not unloaded"
        time.sleep(0.1)
    client.post("/api/chat", json=asked | {"keep_alive": "5m"})
    assert 250 < (stays() or 0) < 301
    unloaded = client.post("/api/generate", json={"model": "tiny/vision", "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "unload"
    assert stays() is None

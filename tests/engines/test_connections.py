"""What happens on one connection: several requests without waiting, and answers in one piece."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.engines.conftest import Engine


def post(path: str, fields: dict[str, object], *more: str) -> bytes:
    body = json.dumps(fields).encode()
    head = [f"POST {path} HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, *more, "", ""]).encode() + body


def talk(engine: Engine, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", engine.port), timeout=30) as line:
        line.sendall(sent)
        return b"".join(iter(lambda: line.recv(1 << 16), b""))


def test_requests_sent_without_waiting_are_answered_in_turn(engine: Engine) -> None:
    fields = {"model": "text_generation", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    answer = talk(
        engine,
        post("/v3/embeddings", {"model": "embeddings", "input": "a"})
        + post("/v3/chat/completions", fields | {"stream": True})
        + post("/v3/embeddings", {"model": "none", "input": "a"})
        + post("/v3/chat/completions", fields, "Connection: close"),
    )
    marks = [b'"embedding"', b"data: [DONE]", b"HTTP/1.1 404", b'"chat.completion"']
    places = [answer.find(each) for each in marks]
    assert -1 not in places
    assert places == sorted(places)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3


def test_a_head_request_has_no_body(engine: Engine) -> None:
    head, _, body = talk(engine, b"HEAD /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 406 ")
    assert not body


def test_a_body_in_two_parts_is_one_request(engine: Engine) -> None:
    whole = post("/v3/embeddings", {"model": "embeddings", "input": "a cat"}, "Connection: close")
    with socket.create_connection(("127.0.0.1", engine.port), timeout=30) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(whole[:-5])
        assert engine.http.get("/v2/health/live").status_code == 200  # the server has seen the first part by now
        line.sendall(whole[-5:])
        answer = b"".join(iter(lambda: line.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"content-length: ") == 1

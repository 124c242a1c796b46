"""An engine that answers at once, for benchmarks: OVMS's paths with canned answers, in a process of its own.

Prints its port on the first line and runs until its input ends.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import wave

CHUNKS = 200


def _http(body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _json(value: object) -> bytes:
    return _http(json.dumps(value, separators=(",", ":")).encode())


def _wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(b"\1\0" * 16000)
    return buffer.getvalue()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(number: int) -> bytes:
    delta = {"index": 0, "logprobs": None, "delta": {"content": f" w{number}"}, "finish_reason": None}
    chunk = {"choices": [delta], "created": 1, "model": "m", "object": "chat.completion.chunk"}
    event = b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


def _events() -> bytes:
    parts = [HEAD, *(_event(number) for number in range(CHUNKS))]
    parts.append(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    return b"".join(parts)


CHOICE = {"index": 0, "logprobs": None, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
ANSWERS = {
    b"/v3/chat/completions": _json({"choices": [CHOICE], "created": 1, "model": "m", "object": "chat.completion"}),
    b"/v3/completions": _json({"choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}], "created": 1}),
    b"/v3/embeddings": _json({"object": "list", "data": [{"embedding": [0.1] * 64, "index": 0}]}),
    b"/v3/rerank": _json({"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}),
    b"/v3/tokenize": _json({"tokens": [[1, 2], [3], [4]]}),
    b"/v3/images/generations": _json({"data": [{"b64_json": base64.b64encode(bytes(3000)).decode()}]}),
    b"/v3/audio/transcriptions": _json(
        {"text": "one two", "segments": [{"start": 0.0, "end": 1.0, "text": "one two"}]}
    ),
    b"/v3/audio/speech": _http(_wav()),
}
EVENT, EVENTS = _event(0), _events()


class Engine(asyncio.Protocol):
    def __init__(self) -> None:
        self.waiting = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while (end := self.waiting.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.waiting[:end])
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.waiting) < end + 4 + length:
                return
            body = bytes(self.waiting[end + 4 : end + 4 + length])
            del self.waiting[: end + 4 + length]
            path = head.split(b" ", 2)[1]
            streams = b'"stream":true' in body or b'"stream": true' in body
            if streams and b'"slow"' in body:
                self._drip()
            else:
                self.transport.write(EVENTS if streams else ANSWERS.get(path, _json({})))

    def _drip(self, sent: int = 0) -> None:
        """Send an event a second, for ever."""
        if not self.transport.is_closing():
            self.transport.write(HEAD + EVENT if sent == 0 else EVENT)
            asyncio.get_running_loop().call_later(1, self._drip, sent + 1)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Engine, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
